//! curl, over HTTP/1.1 and HTTP/2.

use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Method, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::json;
use tokio::sync::{Mutex, mpsc};

use crate::fixture::{Fixture, path};
use crate::support::app::{App, response, status};
use crate::support::program::{Program, find_program};

const LAST: u8 = 36;

/// Versions of HTTP: the option of curl, and its name in the output of curl.
const VERSIONS: [(&str, &str); 2] = [("--http1.1", "1.1"), ("--http2", "2")];

pub async fn curl_uses_both_versions_of_http(fixture: &mut Fixture) -> Result<()> {
    let _app = App::start(&fixture.namespace, LAST, 8081, None, |request| async move {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/moved") => {
                status(StatusCode::FOUND, header::LOCATION, "/elsewhere", "")
            }
            (&Method::GET | &Method::HEAD, "/elsewhere") => {
                response("text/plain", "you are elsewhere")
            }
            (&Method::GET, "/") => response("text/plain", "the root"),
            (&Method::POST | &Method::PUT, "/length") => {
                let body = request
                    .into_body()
                    .collect()
                    .await
                    .map(|body| body.to_bytes().len());
                response("text/plain", format!("{} bytes", body.unwrap_or_default()))
            }
            _ => status(
                StatusCode::NOT_FOUND,
                header::CONTENT_TYPE,
                "text/plain",
                "no such page",
            ),
        }
    })?;
    let ports = json!([{"containerPort": 8081}]);
    fixture
        .objects
        .pod(
            "curled",
            json!({"app": "curled"}),
            fixture.namespace.address(LAST),
            ports,
        )
        .await?;
    fixture.wait_until_known("pods/curled").await?;
    let file = fixture.cluster.folder.path().join("upload");
    std::fs::write(&file, "0123456789abcdef".repeat(1 << 16))?;
    let upload = format!("@{}", file.display());
    for (version, spoken) in VERSIONS {
        for (what, arguments, target, code, text) in [
            ("a service", &[][..], "services/web/proxy/name", 200, "web-"),
            ("a pod", &[], "pods/web-1:8080/proxy/name", 200, "web-1"),
            (
                "a body",
                &["--data", "a=b&c=d"],
                "pods/web-1/proxy/echo",
                200,
                "a=b&c=d",
            ),
            (
                "a large body",
                &["--data-binary", &upload],
                "pods/curled/proxy/length",
                200,
                "1048576 bytes",
            ),
            // Of unknown length.
            (
                "an upload",
                &["--upload-file", "-"],
                "pods/curled/proxy/length",
                403,
                "cannot update",
            ),
            (
                "a stream up",
                &["--upload-file", "-", "--request", "POST"],
                "pods/curled/proxy/length",
                200,
                "5 bytes",
            ),
            (
                "a query",
                &["--get", "--data-urlencode", "q=a&b"],
                "pods/web-1/proxy/x",
                200,
                "GET /x?q=a%26b\n",
            ),
            (
                "HEAD",
                &["--head"],
                "pods/curled/proxy/elsewhere",
                200,
                "content-length: 17",
            ),
            ("the slash", &[], "pods/curled/proxy", 301, ""),
            (
                "the slash, followed",
                &["--location"],
                "pods/curled/proxy",
                200,
                "the root",
            ),
            (
                "the app's redirect",
                &["--location"],
                "pods/curled/proxy/moved",
                200,
                "you are elsewhere",
            ),
            (
                "the app's own error",
                &[],
                "pods/curled/proxy/nowhere",
                404,
                "no such page",
            ),
            (
                "a refusal",
                &[],
                "pods/nobody/proxy/",
                404,
                r#"pods \"nobody\" not found"#,
            ),
            (
                "compression",
                &["--compressed"],
                "services/web/proxy/name",
                200,
                "web-",
            ),
        ] {
            let url = format!("https://{}{}", fixture.bastion.secure, path(target));
            let mut curl = curl(fixture)?;
            curl.args([
                version,
                "--write-out",
                "\n%{http_code} HTTP/%{http_version}",
            ])
            .args(arguments)
            .arg(&url);
            let mut curl = Program::start(&mut curl)?;
            curl.write(b"12345")?;
            curl.finish().await.context(what)?;
            let output = curl.output().join("\n").to_lowercase();
            let right = output.ends_with(&format!("\n{code} http/{spoken}"))
                && output.contains(&text.to_lowercase());
            ensure!(
                right,
                "{what}, {version}: expected {code} and {text:?}:\n{output}"
            );
        }
    }
    Ok(())
}

pub async fn curl_streams_responses(fixture: &mut Fixture) -> Result<()> {
    // The test writes each response in pieces.
    let (feed, pieces) = mpsc::channel::<&'static str>(1);
    let pieces = Arc::new(Mutex::new(pieces));
    let _app = App::start(&fixture.namespace, LAST, 8082, None, move |_| {
        let pieces = Arc::clone(&pieces).try_lock_owned().ok();
        async move {
            let frames = futures::stream::unfold(pieces, |pieces| async move {
                let mut pieces = pieces?;
                let piece = pieces.recv().await.filter(|piece| !piece.is_empty())?;
                Some((
                    Ok(Frame::data(Bytes::from_static(piece.as_bytes()))),
                    Some(pieces),
                ))
            });
            Response::new(StreamBody::new(frames).boxed_unsync())
        }
    })?;
    let ports = json!([{"containerPort": 8082}]);
    fixture
        .objects
        .pod(
            "dripping",
            json!({}),
            fixture.namespace.address(LAST),
            ports,
        )
        .await?;
    fixture.wait_until_known("pods/dripping").await?;
    for (version, _) in VERSIONS {
        let url = format!(
            "https://{}{}",
            fixture.bastion.secure,
            path("pods/dripping/proxy/")
        );
        let mut curl = Program::start(curl(fixture)?.args([version, "--no-buffer", &url]))?;
        for piece in ["first\n", "second\n", "third\n"] {
            feed.send(piece).await?;
            // The next piece is written after this one has arrived.
            curl.wait_for_line(piece.trim()).await.context(version)?;
        }
        feed.send("").await?;
        curl.finish().await.context(version)?;
    }
    Ok(())
}

/// Returns curl with the token of the caller in a file, because all users of a machine can see
/// arguments.
fn curl(fixture: &Fixture) -> Result<Command> {
    let curl = find_program(&["curl"], "on Debian, apt-get install curl")?;
    let header = fixture.cluster.folder.path().join("authorization");
    std::fs::write(
        &header,
        format!("Authorization: Bearer {}\n", fixture.token),
    )?;
    let mut command = Command::new(curl);
    command.args([
        "--silent",
        "--show-error",
        "--max-time",
        "25",
        "--noproxy",
        "*",
        "--cacert",
    ]);
    command
        .arg(&fixture.cluster.ca.file)
        .arg("--header")
        .arg(format!("@{}", header.display()));
    Ok(command)
}
