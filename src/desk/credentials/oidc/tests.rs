//! Refresh at an identity provider on loopback.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::kubeconfig::UserEntry;

const NOW: u64 = 1_800_000_000;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
}

/// Returns a token that expires at a time.
fn jwt(exp: u64) -> String {
    let payload = URL_SAFE_NO_PAD.encode(format!("{{\"exp\": {exp}, \"sub\": \"jane\"}}"));
    format!("e30.{payload}.c2ln")
}

/// Starts an identity provider. It accepts client credentials in the form only, and the refresh
/// token `r1` once, for `r2`. Returns its URL and the number of token requests.
async fn issuer() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::<AtomicUsize>::default();
    let (base, count) = (url.clone(), Arc::clone(&requests));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = vec![0; 8192];
            let mut length = 0;
            let request = loop {
                length += stream.read(&mut bytes[length..]).await.unwrap();
                let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
                let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
                let expected = head.to_lowercase();
                let expected = expected.split("content-length: ").nth(1);
                let expected: usize = expected.map_or(0, |text| {
                    text.lines().next().unwrap().trim().parse().unwrap()
                });
                if text.contains("\r\n\r\n") && body.len() >= expected {
                    break text;
                }
            };
            let (status, body) = if request.starts_with("GET /.well-known/openid-configuration ") {
                (200, format!("{{\"token_endpoint\": \"{base}/token?x=y\"}}"))
            } else if !request.starts_with("POST /token?x=y ") || request.contains("uthorization") {
                (401, "{\"error\": \"invalid_client\"}".into())
            } else if request.contains("refresh_token=r1&client_id=kubernetes&client_secret=s%2Fs")
            {
                count.fetch_add(1, Ordering::Relaxed);
                let token = jwt(NOW + 600);
                (
                    200,
                    format!("{{\"id_token\": \"{token}\", \"refresh_token\": \"r2\"}}"),
                )
            } else {
                (400, "{\"error\": \"invalid_grant\\u001b\"}".into())
            };
            let response = format!(
                "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(response.as_bytes()).await;
        }
    });
    (url, requests)
}

/// A kubeconfig with a user of the issuer.
struct Fixture {
    _folder: TempDir,
    path: PathBuf,
    login: Login,
}

impl Fixture {
    fn new(issuer: &str, id: &str, refresh: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let config = [
            ("idp-issuer-url", issuer),
            ("client-id", "kubernetes"),
            ("client-secret", "s/s"),
            ("id-token", id),
            ("refresh-token", refresh),
        ];
        let fields = config.map(|(name, value)| format!("        {name}: '{value}'\n"));
        let file = format!(
            "users: # mine\n- name: jane\n  user:\n    auth-provider:\n      name: oidc\n      config:\n{}",
            fields.concat()
        );
        fs::write(&path, file).unwrap();
        let config = config.map(|(name, value)| (name.to_owned(), Secret::from(value.to_owned())));
        let user = UserEntry {
            auth_provider: Some(AuthProvider {
                name: "oidc".into(),
                config: config.into(),
            }),
            ..UserEntry::default()
        };
        let login = Login {
            user,
            name: "jane".into(),
            file: Some(path.clone()),
            ..Login::default()
        };
        Self {
            _folder: folder,
            path,
            login,
        }
    }

    fn oidc(&self) -> Oidc {
        let provider = self.login.user.auth_provider.as_ref();
        Oidc::new(&self.login, provider.unwrap()).unwrap()
    }
}

fn authorization(obtained: Obtained) -> String {
    obtained.authorization.unwrap().to_str().unwrap().to_owned()
}

#[tokio::test]
async fn refreshes_an_expired_token_and_stores_the_rotated_ones() {
    let (issuer, requests) = issuer().await;
    let fixture = Fixture::new(&issuer, &jwt(NOW + 5), "r1");
    let oidc = fixture.oidc();
    let obtained = oidc.token(now(), None).await.unwrap();
    assert_eq!(obtained.expires, Some(now() + Duration::from_mins(10)));
    assert_eq!(
        authorization(obtained),
        format!("Bearer {}", jwt(NOW + 600))
    );
    let stored = fs::read_to_string(&fixture.path).unwrap();
    assert!(
        stored.contains("refresh-token: 'r2'") && stored.contains(&jwt(NOW + 600)),
        "{stored}"
    );
    assert!(stored.contains("# mine"), "{stored}");
    // The new token is used until it expires, and another process finds it in the file.
    oidc.token(now(), None).await.unwrap();
    let fixture_of_other = fixture.oidc();
    let obtained = fixture_of_other.token(now(), None).await.unwrap();
    assert_eq!(
        authorization(obtained),
        format!("Bearer {}", jwt(NOW + 600))
    );
    assert_eq!(requests.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn uses_a_valid_token_unless_it_was_rejected() {
    let (issuer, requests) = issuer().await;
    let token = jwt(NOW + 300);
    let fixture = Fixture::new(&issuer, &token, "r1");
    let oidc = fixture.oidc();
    let obtained = oidc.token(now(), None).await.unwrap();
    assert_eq!(authorization(obtained), format!("Bearer {token}"));
    assert_eq!(requests.load(Ordering::Relaxed), 0);
    let rejected = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
    let obtained = oidc.token(now(), Some(&rejected)).await.unwrap();
    assert_eq!(
        authorization(obtained),
        format!("Bearer {}", jwt(NOW + 600))
    );
}

#[tokio::test]
async fn reports_failures_without_tokens() {
    let (issuer, _) = issuer().await;
    for (id, refresh, part) in [
        (
            jwt(NOW),
            "",
            "has expired and there is no refresh-token; log in again",
        ),
        (
            jwt(NOW),
            "s3cr3t",
            "400 Bad Request invalid_grant; log in again",
        ),
        (
            "no.jwt".to_owned(),
            "r1",
            "id-token is missing or malformed",
        ),
    ] {
        let fixture = Fixture::new(&issuer, &id, refresh);
        let error = fixture
            .oidc()
            .token(now(), None)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(part), "{error}");
        assert!(
            !error.contains("s3cr3t") && !error.contains('\u{1b}'),
            "{error}"
        );
    }
    let fixture = Fixture::new("http://127.0.0.1:1", &jwt(NOW), "r1");
    let error = fixture
        .oidc()
        .token(now(), None)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("cannot refresh the id-token at http://127.0.0.1:1"),
        "{error}"
    );
}

#[test]
fn reads_expiry_of_integers_and_fractions() {
    let at = |exp: &str| {
        let payload = URL_SAFE_NO_PAD.encode(format!("{{\"exp\": {exp}}}"));
        let expires = expiry(&format!("a.{payload}.b"))?;
        let since = expires.duration_since(SystemTime::UNIX_EPOCH);
        Some(since.unwrap().as_secs())
    };
    assert_eq!(at("1800000000"), Some(1_800_000_000));
    assert_eq!(at("1.8e9"), Some(1_800_000_000));
    assert_eq!(at("1800000000.7"), Some(1_800_000_000));
    for exp in ["-1", "\"x\"", "1e300", "null"] {
        assert_eq!(at(exp), None, "{exp}");
    }
    for token in ["", "a", "a.b", "a.b.c.d", "a.!.c"] {
        assert_eq!(expiry(token), None, "{token}");
    }
}
