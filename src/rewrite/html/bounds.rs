//! Bounds of one page, and the memory that the parser holds within them.

/// Bytes per write to the parser. Blocks are aligned to the page, not to the frames of the
/// response, so that the bounds stop a page at the same byte however it is split into frames.
pub const BLOCK_BYTES: usize = 4 * 1024;

/// Maximum length of a tag in bytes. The parser holds a tag until its end, and a page may stall
/// within one. Long tags of ordinary pages are inline images (`data:`), few of which exceed 192 KiB
/// before base64.
pub const MAX_TAG_BYTES: usize = 256 * 1024;

/// Maximum length in bytes of an attribute whose links are rewritten, which makes temporary copies
/// of it. Browsers and servers reject longer URLs, and a `srcset` has fewer than a hundred.
pub const MAX_ATTRIBUTE_BYTES: usize = 64 * 1024;

/// Maximum number of attributes of a tag. The parser holds 56 bytes for each, and two bytes of a
/// page are enough for one.
pub const MAX_ATTRIBUTES: usize = 1024;

/// Maximum length of an element's name in bytes. The parser holds a copy for each open element.
/// Names of custom elements rarely exceed 40 bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// Maximum number of open elements, and of contexts of SVG and `MathML`. Browsers nest at most 512
/// elements, but they close many implicitly that the parser keeps open until the end tag of the
/// parent: all cells of a table without `</td>`.
pub const MAX_DEPTH: usize = 4096;

/// Maximum number of image candidates of a `srcset`. Pages have about ten, one per width of the
/// image.
pub const MAX_CANDIDATES: usize = 256;

/// Bytes that rewriting may add per byte of the page. A page of links only (`<a href="/x">x</a>`,
/// 18 bytes) grows by the prefix of the target, about 70 bytes, per link.
pub const MAX_GROWTH_FACTOR: usize = 8;

/// Bytes that rewriting may add beyond [`MAX_GROWTH_FACTOR`], the capacity of its token bucket. It
/// bounds the output of one block.
pub const MAX_GROWTH_BYTES: usize = 256 * 1024;

/// Memory of the parser in bytes, without the memory that depends on the page.
pub const PARSER_BYTES: usize = 12 * 1024;

/// Memory of the parser per open element in bytes: 104, rounded up. It allocates a power of two of
/// them.
pub const ELEMENT_BYTES: usize = 112;

/// Memory of the parser per distinct name of open elements in bytes: an entry of a hash table, 33
/// bytes at a load of at least 7/16. The name is counted separately.
pub const DISTINCT_NAME_BYTES: usize = 80;

/// Maximum length of the names that the parser holds as a number rather than a copy. They consist
/// of letters and the digits 1 to 6.
pub const MAX_SHORT_NAME_BYTES: usize = 12;

/// Memory per open element of SVG or `MathML` in bytes.
pub const NAMESPACE_BYTES: usize = 128;

/// Memory of the parser per attribute of the open tag in bytes. It allocates a power of two of
/// them.
pub const ATTRIBUTE_BYTES: usize = 56;

/// Memory limit of the parser in bytes. It must be above the other bounds, because the parser
/// reaches it at a byte that depends on how the page is split. It must be below twice the elements
/// allowed, because their table doubles. It also ends a tag with far too many attributes early.
pub const MAX_PARSER_BYTES: usize =
    MAX_DEPTH * ELEMENT_BYTES + MAX_ATTRIBUTES * ATTRIBUTE_BYTES + MAX_TAG_BYTES + 2 * BLOCK_BYTES;

/// Maximum number of distinct element names that are tracked. Further names count as distinct at
/// every occurrence.
pub const MAX_TRACKED_NAMES: usize = 128;

/// Memory per tracked name in bytes, without the name: an entry of a hash table at a load of at
/// least 7/16.
pub const TRACKED_NAME_BYTES: usize = 48;

/// Maximum of [`super::Html::held_bytes`].
pub const MAX_HELD_BYTES: usize = PARSER_BYTES
    + 2 * MAX_PARSER_BYTES
    + MAX_DEPTH * (DISTINCT_NAME_BYTES + 2 * (MAX_NAME_BYTES + 16) + NAMESPACE_BYTES)
    + MAX_TRACKED_NAMES * (TRACKED_NAME_BYTES + MAX_NAME_BYTES + 16);

/// Maximum output of one block in bytes: the block, the growth by rewriting, and a tag that was
/// held.
pub const MAX_OUTPUT_BYTES_PER_BLOCK: usize = MAX_TAG_BYTES
    + 2 * BLOCK_BYTES
    + MAX_GROWTH_BYTES
    + MAX_GROWTH_FACTOR * BLOCK_BYTES
    + MAX_ATTRIBUTES * 4;
