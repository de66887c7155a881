use super::*;

use http::Request;
use http_body_util::BodyExt;
use tempfile::TempDir;

use crate::testing::head;

/// Directory with an index page, a directory without one, and some files.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(at("site/empty")).unwrap();
    std::fs::create_dir_all(at("site/with space")).unwrap();
    std::fs::create_dir_all(at("site/shown")).unwrap();
    std::fs::write(at("site/test.txt"), "0123456789").unwrap();
    std::fs::write(at("site/page"), "<html><p>x</p></html>").unwrap();
    std::fs::write(at("site/shown/index.html"), "<p>index</p>").unwrap();
    std::fs::write(at("secret"), "secret").unwrap();
    std::os::unix::fs::symlink("../secret", at("site/link")).unwrap();
    folder
}

/// Response as status, headers and body.
async fn serve(
    folder: &TempDir,
    request: http::request::Builder,
) -> (u16, http::HeaderMap, String) {
    let head = head(request);
    let files = Files::new(folder.path().join("site"));
    let response = files.serve(&head, head.target.path()).await;
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    (parts.status.as_u16(), parts.headers, body)
}

async fn get(folder: &TempDir, path: &str) -> (u16, http::HeaderMap, String) {
    serve(folder, Request::get(path)).await
}

#[tokio::test]
async fn serves_files_with_type_and_date() {
    let folder = folder();
    let (status, headers, body) = get(&folder, "/test.txt").await;
    assert_eq!((status, &*body), (200, "0123456789"));
    assert_eq!(headers["content-type"], "text/plain; charset=utf-8");
    assert_eq!(headers["accept-ranges"], "bytes");
    assert!(headers["last-modified"].to_str().unwrap().ends_with(" GMT"));
    let (_, headers, body) = get(&folder, "/page").await;
    assert_eq!(headers["content-type"], "text/html; charset=utf-8");
    assert_eq!(
        body, "<html><p>x</p></html>",
        "complete after its type was detected"
    );
}

#[tokio::test]
async fn serves_index_page_of_directory() {
    let (status, headers, body) = get(&folder(), "/shown/").await;
    assert_eq!((status, &*body), (200, "<p>index</p>"));
    assert_eq!(headers["content-type"], "text/html; charset=utf-8");
}

#[tokio::test]
async fn redirects_to_the_path_of_the_file() {
    let folder = folder();
    for (path, expected) in [
        ("/shown", "shown/"),
        ("/shown?a=b", "shown/?a=b"),
        ("/with%20space", "with%20space/"),
        ("/shown/index.html", "./"),
        ("/index.html?a", "./?a"),
        ("/test.txt/", "../test.txt"),
    ] {
        let (status, headers, body) = get(&folder, path).await;
        assert_eq!((status, &*body), (301, ""), "{path}");
        assert_eq!(headers["location"], expected, "{path}");
    }
}

#[tokio::test]
async fn lists_directory_without_index_page() {
    let (status, headers, body) = get(&folder(), "/").await;
    assert_eq!(status, 200);
    assert_eq!(headers["content-type"], "text/html; charset=utf-8");
    assert!(headers.contains_key("last-modified"));
    assert!(
        body.contains("<a href=\"with%20space/\">with space/</a>\n"),
        "{body}"
    );
}

#[tokio::test]
async fn does_not_leave_the_directory_except_by_links() {
    let folder = folder();
    for path in [
        "/../secret",
        "/%2e%2e/secret",
        "/..%2Fsecret",
        "/shown/..%2F..%2Fsecret",
        "/missing",
        "/test.txt/x",
        "/a%00b",
    ] {
        let (status, headers, body) = get(&folder, path).await;
        assert_eq!((status, &*body), (404, "404 page not found\n"), "{path}");
        assert_eq!(headers["x-content-type-options"], "nosniff");
    }
    let (status, _, body) = get(&folder, "/link").await;
    assert_eq!((status, &*body), (200, "secret"));
}

#[tokio::test]
async fn does_not_open_pipes() {
    let folder = folder();
    let pipe = folder.path().join("site/pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    assert_eq!(get(&folder, "/pipe").await.0, 404);
}

#[tokio::test]
async fn sends_ranges() {
    let folder = folder();
    let range = |value| Request::get("/test.txt").header("range", value);
    let (status, headers, body) = serve(&folder, range("bytes=2-4")).await;
    assert_eq!((status, &*body), (206, "234"));
    assert_eq!(headers["content-range"], "bytes 2-4/10");
    let (status, headers, body) = serve(&folder, range("bytes=10-")).await;
    assert_eq!(
        (status, &*body),
        (416, "invalid range: failed to overlap\n")
    );
    assert_eq!(headers["content-range"], "bytes */10");
    let (status, headers, body) = serve(&folder, range("lines=1")).await;
    assert_eq!((status, &*body), (416, "invalid range\n"));
    assert!(!headers.contains_key("content-range"));
    let (status, _, body) = serve(&folder, range("bytes=0-1,4-5")).await;
    assert_eq!((status, &*body), (200, "0123456789"), "several ranges");
}

#[tokio::test]
async fn answers_conditional_requests() {
    let folder = folder();
    for path in ["/test.txt", "/"] {
        let (_, headers, _) = get(&folder, path).await;
        let request = Request::get(path).header("if-modified-since", &headers["last-modified"]);
        let (status, headers, body) = serve(&folder, request).await;
        assert_eq!((status, &*body), (304, ""), "{path}");
        assert!(!headers.contains_key("content-type"), "{path}");
    }
    let request = Request::get("/test.txt").header("if-match", "\"a\"");
    assert_eq!(serve(&folder, request).await.0, 412);
}

#[tokio::test]
async fn reports_www_that_is_a_file() {
    let folder = folder();
    let files = Files::new(folder.path().join("secret"));
    let head = head(Request::get("/"));
    assert_eq!(files.serve(&head, "/").await.status(), 500);
    assert_eq!(files.serve(&head, "/x").await.status(), 404);
}
