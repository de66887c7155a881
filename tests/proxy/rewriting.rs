//! Rewriting of responses as clients see it: cookies, validators, early hints.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::support::test_bed::{PREFIX, TestBed, read_all, read_until};

/// Returns the lines of a head that have a name.
fn lines<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let named = |line: &&str| {
        let found = line.split(':').next().unwrap_or_default();
        found.eq_ignore_ascii_case(name)
    };
    head.split("\r\n").filter(named).collect()
}

#[tokio::test]
async fn browser_sends_a_target_only_its_own_cookies() -> Result<()> {
    let bed = TestBed::new().await?;
    let browser = "Sec-Fetch-Mode: navigate\r\nCookie: session=other\r\n\r\n";
    let mut client = bed.request("GET /", browser).await?;
    let (mut backend, head) = bed.accept().await?;
    ensure!(!head.contains("session"), "{head}");
    backend
        .write_all(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\nSet-Cookie: session=own; Path=/\r\n\r\nok",
        )
        .await?;
    let head = read_until(&mut client, "\r\n\r\n").await?;
    let set = lines(&head, "set-cookie");
    ensure!(
        set[0] == format!("Set-Cookie: session=own; Path={PREFIX}/"),
        "{set:?}"
    );
    let boundary = set
        .iter()
        .find_map(|line| line.strip_prefix("Set-Cookie: kube-bastion-boundary="))
        .and_then(|rest| rest.split(';').next())
        .with_context(|| format!("no boundary in {set:?}"))?;
    let browser = format!(
        "Sec-Fetch-Mode: navigate\r\n\
         Cookie: session=own; kube-bastion-boundary={boundary}; session=other\r\n\r\n"
    );
    let mut client = bed.request("GET /x", &browser).await?;
    let (mut backend, head) = bed.accept().await?;
    ensure!(lines(&head, "cookie") == ["Cookie: session=own"], "{head}");
    backend.write_all(crate::OK_RESPONSE).await?;
    let head = read_until(&mut client, "ok").await?;
    ensure!(lines(&head, "set-cookie").is_empty(), "{head}");
    Ok(())
}

#[tokio::test]
async fn upgrades_keep_cookies_at_their_target() -> Result<()> {
    let bed = TestBed::new().await?;
    let upgrade = "Connection: Upgrade\r\nUpgrade: x\r\n\r\n";
    for answer in [
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x",
        "HTTP/1.1 403 Forbidden\r\nContent-Length: 0",
        "HTTP/1.1 200 OK\r\nContent-Length: 0",
    ] {
        let mut client = bed.request("GET /x", upgrade).await?;
        let (mut backend, _) = bed.accept().await?;
        let response = format!(
            "{answer}\r\nSet-Cookie: a=b; Path=/; Domain=example.com\r\nAlt-Svc: h3=\":443\"\r\n\r\n"
        );
        backend.write_all(response.as_bytes()).await?;
        let head = read_until(&mut client, "\r\n\r\n").await?;
        let expected = format!("Set-Cookie: a=b; Path={PREFIX}/");
        ensure!(lines(&head, "set-cookie") == [expected], "{answer}: {head}");
        ensure!(lines(&head, "alt-svc").is_empty(), "{answer}: {head}");
    }
    Ok(())
}

#[tokio::test]
async fn early_hints_are_rewritten_as_final_responses() -> Result<()> {
    let bed = TestBed::new().await?;
    let mut client = bed.request("GET /", "\r\n").await?;
    let (mut backend, _) = bed.accept().await?;
    let address = backend.local_addr()?;
    let hints = format!(
        "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload, <http://{address}/b.js>; rel=preload\r\n\
         Set-Cookie: a=b; Path=/\r\n\r\n"
    );
    backend.write_all(hints.as_bytes()).await?;
    let head = read_until(&mut client, "\r\n\r\n").await?;
    let expected = format!("Link: <{PREFIX}/a.css>; rel=preload, <{PREFIX}/b.js>; rel=preload");
    ensure!(lines(&head, "link") == [expected], "{head}");
    let expected = format!("Set-Cookie: a=b; Path={PREFIX}/");
    ensure!(lines(&head, "set-cookie") == [expected], "{head}");
    // Without a URL that clients could follow, an interim response with an invalid one is dropped.
    backend
        .write_all(b"HTTP/1.1 103 Early Hints\r\nLocation: http://[oops/\r\n\r\n")
        .await?;
    backend.write_all(crate::OK_RESPONSE).await?;
    let head = read_until(&mut client, "ok").await?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    Ok(())
}

#[tokio::test]
async fn page_whose_parts_are_joined_is_sent_as_a_whole() -> Result<()> {
    let bed = TestBed::new().await?;
    for tag in ["\"abc\"", "Sat, 01 Jan 2000 00:00:00 GMT"] {
        let range = format!("Range: bytes=9-\r\nIf-Range: {tag}\r\nConnection: close\r\n\r\n");
        let mut client = bed.request("GET /page", &range).await?;
        let (mut backend, head) = bed.accept().await?;
        ensure!(lines(&head, "range").len() == 1, "{head}");
        backend
            .write_all(b"HTTP/1.1 206 Partial Content\r\nContent-Type: text/html\r\nETag: \"abc\"\r\nContent-Range: bytes 9-17/18\r\nContent-Length: 9\r\n\r\n/a\">1</a>")
            .await?;
        let second = timeout(Duration::from_secs(30), bed.accept()).await;
        let (mut backend, head) = second.context("only one request")??;
        ensure!(head.starts_with("GET /page HTTP/1.1\r\n"), "{head}");
        ensure!(!head.to_lowercase().contains("range"), "{head}");
        backend
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nETag: \"abc\"\r\nContent-Length: 18\r\nConnection: close\r\n\r\n<a href=\"/a\">1</a>")
            .await?;
        let response = read_all(&mut client).await;
        ensure!(response.starts_with("HTTP/1.1 200 "), "{response}");
        ensure!(
            response.contains(&format!("<a href=\"{PREFIX}/a\">1</a>")),
            "{response}"
        );
        ensure!(response.contains("W/\"abc-bastion\""), "{response}");
    }
    Ok(())
}

#[tokio::test]
async fn parts_that_nobody_joins_or_rewrites_pass() -> Result<()> {
    let bed = TestBed::new().await?;
    for (condition, content_type) in [
        ("", "text/html"),
        ("If-Range: \"abc\"\r\n", "application/zip"),
    ] {
        let range = format!("Range: bytes=9-\r\n{condition}Connection: close\r\n\r\n");
        let mut client = bed.request("GET /page", &range).await?;
        let (mut backend, _) = bed.accept().await?;
        let response = format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Type: {content_type}\r\nETag: \"abc\"\r\n\
             Content-Range: bytes 9-17/18\r\nContent-Length: 9\r\nConnection: close\r\n\r\n/a\">1</a>"
        );
        backend.write_all(response.as_bytes()).await?;
        let response = read_all(&mut client).await;
        ensure!(response.starts_with("HTTP/1.1 206 "), "{response}");
        ensure!(
            response.contains("ETag: \"abc\"") && response.ends_with("\r\n\r\n/a\">1</a>"),
            "{response}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn cached_page_is_revalidated_with_the_tag_of_its_endpoint() -> Result<()> {
    let bed = TestBed::new().await?;
    let mut client = bed.request("GET /page", "\r\n").await?;
    let (mut backend, _) = bed.accept().await?;
    backend
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nETag: \"abc\"\r\nContent-Length: 18\r\nConnection: close\r\n\r\n<a href=\"/a\">1</a>")
        .await?;
    let head = read_until(&mut client, "\r\n\r\n").await?;
    let tag = lines(&head, "etag");
    let tag = tag
        .first()
        .and_then(|line| line.split_once(": "))
        .context("no tag")?
        .1;
    ensure!(tag.starts_with("W/"), "{tag}");
    let condition = format!("If-None-Match: {tag}\r\n\r\n");
    let mut client = bed.request("GET /page", &condition).await?;
    let (mut backend, head) = bed.accept().await?;
    // As endpoints see it that compare tags as strings.
    ensure!(
        lines(&head, "if-none-match") == ["If-None-Match: \"abc\""],
        "{head}"
    );
    backend
        .write_all(b"HTTP/1.1 304 Not Modified\r\nETag: \"abc\"\r\nContent-MD5: x\r\n\r\n")
        .await?;
    let head = read_until(&mut client, "\r\n\r\n").await?;
    ensure!(lines(&head, "etag") == [format!("ETag: {tag}")], "{head}");
    ensure!(lines(&head, "content-md5").is_empty(), "{head}");
    Ok(())
}

#[tokio::test]
async fn body_without_a_type_stays_whole_whatever_its_start_is() -> Result<()> {
    let bed = TestBed::new().await?;
    let page = format!("<a href=\"{PREFIX}/r\">t</a>");
    for (head, parts, expected) in [
        ("Content-Length: 6", &["abc", "def"][..], "abcdef"),
        ("Content-Length: 0", &[], ""),
        ("Content-Length: 18", &["<a href=\"/r\">", "t</a>"], &*page),
        (
            "Transfer-Encoding: chunked",
            &["3\r\nabc\r\n", "3\r\ndef\r\n", "0\r\n\r\n"],
            "abcdef",
        ),
        (
            "Transfer-Encoding: chunked",
            &["d\r\n<a href=\"/r\">\r\n", "5\r\nt</a>\r\n0\r\n\r\n"],
            &*page,
        ),
    ] {
        let mut client = bed.request("GET /", "Connection: close\r\n\r\n").await?;
        let (mut backend, _) = bed.accept().await?;
        let head = format!("HTTP/1.1 200 OK\r\n{head}\r\nConnection: close\r\n\r\n");
        backend.write_all(head.as_bytes()).await?;
        for part in parts {
            backend.write_all(part.as_bytes()).await?;
            tokio::task::yield_now().await;
        }
        let response = read_all(&mut client).await;
        let (head, body) = response.split_once("\r\n\r\n").context("a head")?;
        let length = lines(head, "content-length");
        if !length.is_empty() {
            ensure!(
                length == [format!("Content-Length: {}", expected.len())],
                "{response}"
            );
            ensure!(body == expected, "{response}");
            continue;
        }
        // Every second line is the size of a chunk.
        ensure!(body.ends_with("0\r\n\r\n"), "{response}");
        let data: String = body.split("\r\n").skip(1).step_by(2).collect();
        ensure!(data == expected, "{response}");
    }
    Ok(())
}

#[tokio::test]
async fn cut_body_without_a_type_does_not_end_cleanly() -> Result<()> {
    let bed = TestBed::new().await?;
    for sent in ["", "3\r\nabc\r\n", "3\r\nabc\r\n3\r\nde"] {
        let mut client = bed.request("GET /", "\r\n").await?;
        let (mut backend, _) = bed.accept().await?;
        let head = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{sent}");
        backend.write_all(head.as_bytes()).await?;
        drop(backend);
        let response = read_all(&mut client).await;
        ensure!(!response.contains("0\r\n\r\n"), "{sent:?}: {response}");
    }
    Ok(())
}
