//! Static files of `--www`, as Go's `http.FileServer` serves them to users of `kubectl proxy`:
//! `index.html`, listings of directories, redirects to the path with or without a slash at its end,
//! conditional requests and ranges.
//!
//! Paths cannot leave the directory. Symbolic links in it are followed, wherever they lead.

mod conditions;
mod content_type;
mod listing;
mod range;

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use jiff::Timestamp;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};

use super::body::{Body, FilePart, not_found, text_response};
use crate::http::RequestHead;
use conditions::{Conditions, Outcome};
use range::RangeError;

/// Characters that are escaped in references to entries of a directory, as in Go's listings.
const SEGMENT_ESCAPES: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'!')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'\'')
    .add(b'(')
    .add(b')')
    .add(b'*')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');
/// Page of a directory that is shown instead of a listing.
const INDEX: &str = "index.html";
/// Number of bytes that decide about the type of a file whose name does not (MIME Sniffing
/// section 5.2).
const SNIFFED: usize = 512;

/// Directory with static files.
#[derive(Clone, Debug)]
pub struct Files {
    root: PathBuf,
}

/// Result of a lookup.
#[derive(Debug)]
enum Found {
    /// The path differs from that of the file by the slash at its end.
    Redirect(String),
    File {
        file: File,
        metadata: Metadata,
        content_type: HeaderValue,
    },
    Directory {
        listing: String,
        metadata: Metadata,
    },
    /// The directory of `--www` is a file.
    RootIsFile,
}

impl Files {
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Responds to a request. `path` is the path below the prefix, with a slash at its start.
    pub async fn serve(&self, head: &RequestHead, path: &str) -> Response<Body> {
        let path: Vec<u8> = percent_decode_str(path).collect();
        let redirect = |location: &str| redirect(location, head.target.query());
        if path.ends_with(b"/index.html") {
            return redirect("./");
        }
        let root = self.root.clone();
        let found = tokio::task::spawn_blocking(move || find(&root, &path)).await;
        match found.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(Found::Redirect(location)) => redirect(&location),
            Ok(Found::File {
                file,
                metadata,
                content_type,
            }) => content(head, file, &metadata, content_type),
            Ok(Found::Directory { listing, metadata }) => directory(head, listing, &metadata),
            Ok(Found::RootIsFile) => text_response(
                StatusCode::INTERNAL_SERVER_ERROR,
                "http: attempting to traverse a non-directory",
            ),
            Err(error) => failure(&error),
        }
    }
}

/// Finds what a path names. Blocks on the file system.
fn find(root: &Path, path: &[u8]) -> io::Result<Found> {
    let mut segments: Vec<&[u8]> = Vec::new();
    for segment in path.split(|byte| *byte == b'/') {
        match segment {
            b"" | b"." => {}
            b".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    let name = segments.last().copied();
    let mut file = root.to_owned();
    file.extend(segments.iter().map(|segment| OsStr::from_bytes(segment)));
    let mut metadata = std::fs::metadata(&file)?;
    let has_slash = path.ends_with(b"/");
    match name {
        Some(name) if metadata.is_dir() && !has_slash => {
            return Ok(Found::Redirect(format!("{}/", escaped(name))));
        }
        Some(name) if !metadata.is_dir() && has_slash => {
            return Ok(Found::Redirect(format!("../{}", escaped(name))));
        }
        None if !metadata.is_dir() => return Ok(Found::RootIsFile),
        _ => {}
    }
    if metadata.is_dir() {
        let index = file.join(INDEX);
        match std::fs::metadata(&index) {
            Ok(found) if found.is_file() => {
                file = index;
                metadata = found;
            }
            _ => {
                let listing = listing::list(&file)?;
                return Ok(Found::Directory { listing, metadata });
            }
        }
    }
    // To open a pipe would block until it has a writer.
    if !metadata.is_file() {
        return Err(ErrorKind::NotFound.into());
    }
    let mut opened = File::open(&file)?;
    let content_type = if let Some(content_type) = content_type::of_name(&file) {
        content_type
    } else {
        let mut start = Vec::with_capacity(SNIFFED);
        (&mut opened).take(SNIFFED as u64).read_to_end(&mut start)?;
        opened.seek(SeekFrom::Start(0))?;
        HeaderValue::from_static(content_type::of_content(&start))
    };
    Ok(Found::File {
        metadata: opened.metadata()?,
        file: opened,
        content_type,
    })
}

/// Escapes a name for a reference to it.
fn escaped(name: &[u8]) -> String {
    percent_encode(name, SEGMENT_ESCAPES).to_string()
}

/// Returns the response to a request for a file.
fn content(
    head: &RequestHead,
    mut file: File,
    metadata: &Metadata,
    content_type: HeaderValue,
) -> Response<Body> {
    let modified = modified(metadata);
    let conditions = Conditions { head, modified };
    let range = match conditions.evaluate() {
        Outcome::Send { range } => range,
        Outcome::NotModified => return bare(StatusCode::NOT_MODIFIED, modified),
        Outcome::Failed => return bare(StatusCode::PRECONDITION_FAILED, modified),
    };
    let size = metadata.len();
    let part = match range.map_or(Ok(None), |range| range::parse(range, size)) {
        Ok(part) => part,
        Err(error) => return unsatisfiable(error, size),
    };
    if let Some(part) = &part
        && let Err(error) = file.seek(SeekFrom::Start(part.start))
    {
        return failure(&error);
    }
    let body = Body::File(FilePart {
        file: file.into(),
        remaining: part.as_ref().map_or(size, |part| part.length),
    });
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    insert_date(&mut response, modified);
    if let Some(part) = part {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        insert_text(
            &mut response,
            header::CONTENT_RANGE,
            &part.content_range(size),
        );
    }
    response
}

/// Returns the response to a request for a directory without a page.
fn directory(head: &RequestHead, listing: String, metadata: &Metadata) -> Response<Body> {
    let modified = modified(metadata);
    let conditions = Conditions { head, modified };
    if conditions.is_unmodified() {
        return bare(StatusCode::NOT_MODIFIED, None);
    }
    let mut response = Response::new(Body::full(listing));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    insert_date(&mut response, modified);
    response
}

/// Returns a response without a body.
fn bare(status: StatusCode, modified: Option<i64>) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    insert_date(&mut response, modified);
    response
}

/// Returns the redirect to a relative path, which keeps the query.
fn redirect(location: &str, query: Option<&str>) -> Response<Body> {
    let location = match query {
        Some(query) if !query.is_empty() => format!("{location}?{query}"),
        _ => location.to_owned(),
    };
    let mut response = bare(StatusCode::MOVED_PERMANENTLY, None);
    insert_text(&mut response, header::LOCATION, &location);
    response
}

fn unsatisfiable(error: RangeError, size: u64) -> Response<Body> {
    let mut response = text_response(StatusCode::RANGE_NOT_SATISFIABLE, &error.to_string());
    if matches!(error, RangeError::NoOverlap) {
        insert_text(
            &mut response,
            header::CONTENT_RANGE,
            &format!("bytes */{size}"),
        );
    }
    response
}

/// Returns the response for an error of the file system, without its text.
fn failure(error: &io::Error) -> Response<Body> {
    match error.kind() {
        // A path with a NUL, or below a file.
        ErrorKind::NotFound | ErrorKind::InvalidInput | ErrorKind::NotADirectory => not_found(),
        ErrorKind::PermissionDenied => text_response(StatusCode::FORBIDDEN, "403 Forbidden"),
        _ => {
            tracing::warn!(%error, "failed to serve a file of --www");
            text_response(
                StatusCode::INTERNAL_SERVER_ERROR,
                "500 Internal Server Error",
            )
        }
    }
}

/// Returns the time of the last modification in seconds since the Unix epoch. `None` if it is not
/// known.
fn modified(metadata: &Metadata) -> Option<i64> {
    let modified = Timestamp::try_from(metadata.modified().ok()?).ok()?;
    Some(modified.as_second()).filter(|second| *second != 0)
}

fn insert_date(response: &mut Response<Body>, modified: Option<i64>) {
    if let Some(date) = modified.and_then(conditions::format_date) {
        insert_text(response, header::LAST_MODIFIED, &date);
    }
}

/// Inserts a header, unless its value is not valid.
fn insert_text(response: &mut Response<Body>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

#[cfg(test)]
mod tests;
