//! Detection of the responses whose links are rewritten.

use http::{Method, Response, StatusCode, header};
use lol_html::AsciiCompatibleEncoding;

use super::coding::Coding;
use super::html;

/// Content coding and character encoding of an HTML page.
#[derive(Clone, Copy, Debug)]
pub struct PageFormat {
    pub(super) coding: Coding,
    pub(super) encoding: AsciiCompatibleEncoding,
}

impl PageFormat {
    /// Returns the format of the response's page if its links are to be rewritten: `text/html`,
    /// complete, in a supported coding and encoding, and not a redirect.
    pub fn detect<B>(method: &Method, response: &Response<B>) -> Option<Self> {
        let (headers, code) = (response.headers(), response.status());
        let content_type = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
        let (media_type, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
        if !media_type.trim().eq_ignore_ascii_case("text/html")
            || headers.contains_key(header::LOCATION)
        {
            return None;
        }
        // The links of a partial page may be cut anywhere, also within a tag.
        let is_incomplete = *method == Method::HEAD
            || matches!(
                code,
                StatusCode::NO_CONTENT | StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED
            );
        if is_incomplete {
            return None;
        }
        let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
        let coding = match (codings.next(), codings.next()) {
            (None, _) => Coding::Identity,
            (Some(coding), None) => Coding::parse(coding.to_str().ok()?)?,
            // Stacked codings would need a chain of decoders, and do not occur in practice.
            (Some(_), Some(_)) => return None,
        };
        let charset = parameters
            .split(';')
            .filter_map(|parameter| parameter.split_once('='))
            .find_map(|(name, value)| {
                name.trim()
                    .eq_ignore_ascii_case("charset")
                    .then(|| value.trim().trim_matches(['"', '\'']))
            });
        Some(Self {
            coding,
            encoding: html::encoding(charset)?,
        })
    }

    /// Memory that rewriting the page holds from the start, in bytes.
    pub fn held_bytes(&self) -> usize {
        html::PARSER_BYTES + html::BLOCK_BYTES + self.coding.held_bytes()
    }
}
