//! Renewal with a plugin that runs, a clock that the tests set, and files that change.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures::future::join_all;
use tempfile::TempDir;

use super::*;
use crate::kubeconfig::{ExecPlugin, InteractiveMode};

/// 2027-01-15T08:00:00Z
const START: u64 = 1_800_000_000;

/// Clock that stands still until it is moved.
#[derive(Clone, Default)]
struct TestClock(Arc<AtomicU64>);

impl TestClock {
    fn advance(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }

    fn seconds(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn clock(&self) -> renewal::Clock {
        let clock = self.clone();
        Arc::new(move || SystemTime::UNIX_EPOCH + Duration::from_secs(START + clock.seconds()))
    }
}

/// A plugin that appends a line to `runs`, and prints the file `output`.
struct PluginFixture {
    folder: TempDir,
    clock: TestClock,
    credentials: Credentials,
}

impl PluginFixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let exec = ExecPlugin {
            command: "sh".into(),
            args: vec![
                "-c".into(),
                format!("echo run >> {path}/runs; cat {path}/output"),
            ],
            api_version: "client.authentication.k8s.io/v1".into(),
            interactive_mode: Some(InteractiveMode::Never),
            ..ExecPlugin::default()
        };
        let user = UserEntry {
            exec: Some(exec),
            ..UserEntry::default()
        };
        let clock = TestClock::default();
        let credentials = Credentials::with_clock(login(user), clock.clock()).unwrap();
        Self {
            folder,
            clock,
            credentials,
        }
    }

    /// Sets the output of the next runs: a token that lives `life` seconds from now, or without an
    /// expiry.
    fn prints(&self, token: &str, life: Option<u64>) {
        let expires = life.map(|life| {
            let expires = START + self.clock.seconds() + life;
            let expires = jiff::Timestamp::from_second(expires.try_into().unwrap());
            format!(", \"expirationTimestamp\": \"{}\"", expires.unwrap())
        });
        let status = format!("\"token\": \"{token}\"{}", expires.unwrap_or_default());
        self.prints_status(&status);
    }

    fn prints_status(&self, status: &str) {
        let output = format!(
            "{{\"kind\": \"ExecCredential\", \"apiVersion\": \"client.authentication.k8s.io/v1\", \
             \"status\": {{{status}}}}}"
        );
        fs::write(self.folder.path().join("output"), output).unwrap();
    }

    fn fails(&self) {
        let _ = fs::remove_file(self.folder.path().join("output"));
    }

    fn runs(&self) -> usize {
        let runs = fs::read_to_string(self.folder.path().join("runs"));
        runs.map_or(0, |runs| runs.lines().count())
    }

    async fn token(&self) -> Result<String, String> {
        let authorization = self.credentials.authorization().await;
        let value = authorization.map_err(|error| error.to_string())?;
        let value = value.ok_or("none")?;
        Ok(value.to_str().unwrap().replace("Bearer ", ""))
    }
}

fn login(user: UserEntry) -> Login {
    crate::tls::install_provider();
    Login {
        user,
        name: "jane".into(),
        ..Login::default()
    }
}

fn value(token: &str) -> HeaderValue {
    HeaderValue::from_str(&format!("Bearer {token}")).unwrap()
}

/// Returns the token of renewed credentials.
fn token(renewed: Result<Option<Presented>, CredentialsError>) -> Option<String> {
    let renewed = renewed.unwrap()?;
    let authorization = renewed.authorization()?.to_str().unwrap();
    Some(authorization.replace("Bearer ", ""))
}

#[tokio::test]
async fn concurrent_requests_share_a_run() {
    let fixture = PluginFixture::new();
    fixture.prints("a", None);
    let tokens = join_all((0..50).map(|_| fixture.token())).await;
    assert!(tokens.iter().all(|token| token.as_deref() == Ok("a")));
    assert_eq!(fixture.runs(), 1);
}

#[tokio::test]
async fn a_request_that_is_canceled_does_not_end_the_run() {
    let fixture = PluginFixture::new();
    fixture.prints("a", None);
    let canceled = tokio::time::timeout(Duration::ZERO, fixture.token()).await;
    assert!(canceled.is_err(), "a run takes some time");
    assert_eq!(fixture.token().await.as_deref(), Ok("a"));
    assert_eq!(fixture.runs(), 1);
}

#[tokio::test]
async fn five_minutes_with_a_token_of_90_seconds_run_the_plugin_once_a_minute() {
    let fixture = PluginFixture::new();
    let mut run_times = Vec::new();
    for second in 0..300 {
        // A token is the second in which it is issued.
        fixture.prints(&second.to_string(), Some(90));
        let runs = fixture.runs();
        let issued: u64 = fixture.token().await.unwrap().parse().unwrap();
        assert!(
            second < issued + 90,
            "at {second} s: the token of {issued} s"
        );
        fixture.credentials.renewal.settled().await;
        run_times.extend((runs..fixture.runs()).map(|_| second));
        fixture.clock.advance(1);
    }
    assert_eq!(run_times, [0, 60, 120, 180, 240]);
}

#[tokio::test]
async fn a_failed_renewal_keeps_the_token_until_it_expires() {
    let fixture = PluginFixture::new();
    fixture.prints("a", Some(600));
    assert_eq!(fixture.token().await.as_deref(), Ok("a"));
    fixture.fails();
    for _ in 0..599 {
        fixture.clock.advance(1);
        assert_eq!(fixture.token().await.as_deref(), Ok("a"));
        fixture.credentials.renewal.settled().await;
    }
    // From 480 s on, every ten seconds.
    assert_eq!(fixture.runs(), 13);
    fixture.clock.advance(1);
    let error = fixture.token().await.unwrap_err();
    assert!(error.contains("failed with exit code 1"), "{error}");
    let runs = fixture.runs();
    let errors = join_all((0..20).map(|_| fixture.token())).await;
    assert!(errors.iter().all(Result::is_err));
    assert_eq!(
        fixture.runs(),
        runs,
        "a failure is not repeated by each request"
    );
    fixture.prints("b", Some(600));
    fixture.clock.advance(10);
    assert_eq!(fixture.token().await.as_deref(), Ok("b"));
}

#[tokio::test]
async fn a_rejected_token_is_renewed_once() {
    let fixture = PluginFixture::new();
    fixture.prints("a", None);
    assert_eq!(fixture.token().await.as_deref(), Ok("a"));
    let rejected = fixture.credentials.current().await.unwrap();
    fixture.prints("b", None);
    let renewals = join_all((0..20).map(|_| fixture.credentials.renew(&rejected))).await;
    let newer = renewals[0].clone().unwrap().unwrap();
    for renewed in renewals {
        assert_eq!(token(renewed), Some("b".into()));
    }
    assert_eq!(fixture.runs(), 2);
    // A late 401 of the first token does not run the plugin again, nor does one of the second within
    // ten seconds.
    let renew = |rejected| fixture.credentials.renew(rejected);
    assert_eq!(token(renew(&rejected).await), Some("b".into()));
    assert_eq!(token(renew(&newer).await), None);
    assert_eq!(fixture.runs(), 2);
    fixture.clock.advance(10);
    assert_eq!(token(renew(&newer).await), None);
    assert_eq!(fixture.runs(), 3, "the plugin has no other token");
    fixture.clock.advance(10);
    fixture.fails();
    assert!(renew(&newer).await.is_err());
}

/// A plugin that returns only a client certificate.
#[tokio::test]
async fn a_rejected_certificate_of_a_plugin_is_renewed_once() {
    let fixture = PluginFixture::new();
    let status = || {
        let pair = rcgen::generate_simple_self_signed(["jane".to_owned()]).unwrap();
        let (chain, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
        format!("\"clientCertificateData\": {chain:?}, \"clientKeyData\": {key:?}")
    };
    fixture.prints_status(&status());
    let mut generations = Vec::new();
    let attempt = async |presented: &Presented| {
        assert_eq!(presented.authorization(), None);
        generations.push(presented.credential());
        fixture.prints_status(&status());
        Ok::<_, CredentialsError>(generations.len())
    };
    let sent = fixture.credentials.with_renewal(attempt, |_| true).await;
    assert_eq!((sent.unwrap(), fixture.runs()), (2, 2));
    assert_ne!(generations[0], generations[1]);
    // Within ten seconds the plugin is not run again.
    let sent = fixture.credentials.with_renewal(
        async |_: &Presented| Ok::<_, CredentialsError>(()),
        |()| true,
    );
    assert!(sent.await.is_ok());
    assert_eq!(fixture.runs(), 2);
}

#[tokio::test]
async fn a_rotated_certificate_of_a_plugin_is_a_new_generation() {
    let fixture = PluginFixture::new();
    let status = || {
        let pair = rcgen::generate_simple_self_signed(["jane".to_owned()]).unwrap();
        let (chain, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
        format!(
            "\"token\": \"a\", \"expirationTimestamp\": \"{}\", \
             \"clientCertificateData\": {chain:?}, \"clientKeyData\": {key:?}",
            jiff::Timestamp::from_second(START.try_into().unwrap()).unwrap()
        )
    };
    let before = fixture.credentials.generation();
    let certificate = async || {
        fixture.credentials.current().await.unwrap();
        fixture.credentials.certificate()
    };
    fixture.prints_status(&status());
    let (generation, first) = certificate().await;
    assert!(first.is_some() && generation != before);
    fixture.clock.advance(10);
    let same = certificate().await;
    assert_eq!((fixture.runs(), same.0), (2, generation));
    fixture.prints_status(&status());
    fixture.clock.advance(10);
    let (changed, other) = certificate().await;
    assert!(changed != generation && other.unwrap().cert != first.unwrap().cert);
}

#[tokio::test]
async fn reads_a_token_file_again_and_after_a_401() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let write = |token: &str| fs::write(&path, token).unwrap();
    write("a\n");
    let user = UserEntry {
        token_file: Some(path.clone()),
        ..UserEntry::default()
    };
    let clock = TestClock::default();
    let credentials = Credentials::with_clock(login(user), clock.clock()).unwrap();
    let current = || credentials.authorization();
    assert_eq!(current().await.unwrap(), Some(value("a")));
    write("b");
    assert_eq!(current().await.unwrap(), Some(value("a")));
    clock.advance(10);
    assert_eq!(current().await.unwrap(), Some(value("b")));
    let rejected = credentials.current().await.unwrap();
    write("c");
    let renewed = credentials.renew(&rejected).await;
    assert_eq!(token(renewed.clone()), Some("c".into()));
    let rejected = renewed.unwrap().unwrap();
    assert_eq!(token(credentials.renew(&rejected).await), None);
    fs::remove_file(&path).unwrap();
    clock.advance(10);
    assert_eq!(
        current().await.unwrap(),
        Some(value("c")),
        "the last known token"
    );
}

#[tokio::test]
async fn reloads_a_client_certificate_whose_files_change() {
    let folder = tempfile::tempdir().unwrap();
    let (chain, key) = (folder.path().join("crt"), folder.path().join("key"));
    let write = |path: &Path, text: String| fs::write(path, text).unwrap();
    crate::tls::install_provider();
    let new = || rcgen::generate_simple_self_signed(["jane".to_owned()]).unwrap();
    let first = new();
    write(&chain, first.cert.pem());
    write(&key, first.signing_key.serialize_pem());
    let user = UserEntry {
        client_certificate: Some(chain.clone()),
        client_key: Some(key.clone()),
        ..UserEntry::default()
    };
    let clock = TestClock::default();
    let credentials = Credentials::with_clock(login(user), clock.clock()).unwrap();
    let generation = || async {
        assert_eq!(credentials.authorization().await.unwrap(), None);
        let (generation, certificate) = credentials.certificate();
        assert_eq!(generation, credentials.generation());
        (generation, certificate.unwrap().cert[0].to_vec())
    };
    let before = generation().await;
    clock.advance(10);
    assert_eq!(generation().await, before);
    // The key follows the certificate; until then, the old pair stays.
    let second = new();
    write(&chain, second.cert.pem());
    clock.advance(10);
    assert_eq!(generation().await, before);
    write(&key, second.signing_key.serialize_pem());
    clock.advance(10);
    let after = generation().await;
    assert!(after.0 != before.0 && after.1 == second.cert.der().to_vec());
}

#[tokio::test]
async fn static_credentials_beat_a_plugin() {
    let exec = || {
        Some(ExecPlugin {
            command: "kube-bastion-no-such-plugin".into(),
            api_version: "client.authentication.k8s.io/v1".into(),
            interactive_mode: Some(InteractiveMode::Never),
            ..ExecPlugin::default()
        })
    };
    let secret = |text: &str| Some(Secret::from(text.to_owned()));
    crate::tls::install_provider();
    let pair = rcgen::generate_simple_self_signed(["jane".to_owned()]).unwrap();
    let certificate = UserEntry {
        exec: exec(),
        client_certificate_data: Some(STANDARD.encode(pair.cert.pem())),
        client_key_data: secret(&STANDARD.encode(pair.signing_key.serialize_pem())),
        ..UserEntry::default()
    };
    let cases = [
        (
            UserEntry {
                exec: exec(),
                token: secret("a"),
                ..UserEntry::default()
            },
            Ok(Some("Bearer a")),
        ),
        (
            UserEntry {
                exec: exec(),
                username: Some("jane".into()),
                password: secret("s3cr3t"),
                ..UserEntry::default()
            },
            Ok(Some("Basic amFuZTpzM2NyM3Q=")),
        ),
        (
            UserEntry {
                exec: exec(),
                token: secret("a"),
                token_file: Some("/nonexistent/token".into()),
                ..UserEntry::default()
            },
            Ok(Some("Bearer a")),
        ),
        (certificate, Ok(None)),
        (
            UserEntry {
                exec: exec(),
                ..UserEntry::default()
            },
            Err(()),
        ),
        (
            UserEntry {
                token_file: Some("/nonexistent/token".into()),
                ..UserEntry::default()
            },
            Err(()),
        ),
        (UserEntry::default(), Ok(None)),
    ];
    for (user, expected) in cases {
        let text = format!("{user:?}");
        assert!(!text.contains("s3cr3t"), "{text}");
        let credentials = Credentials::new(login(user)).unwrap();
        let authorization = credentials.authorization().await.map_err(drop);
        let expected = expected.map(|value| value.map(HeaderValue::from_static));
        assert_eq!(authorization, expected, "{text}");
    }
}

#[test]
fn rejects_auth_providers_that_kubectl_removed() {
    for (name, part) in [
        ("gcp", "gke-gcloud-auth-plugin"),
        ("azure", "kubelogin convert-kubeconfig"),
        ("openstack", "credential plugin"),
    ] {
        let user = UserEntry {
            auth_provider: Some(crate::kubeconfig::AuthProvider {
                name: name.into(),
                ..Default::default()
            }),
            ..UserEntry::default()
        };
        let error = Credentials::new(login(user)).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(part), "{error}");
    }
}
