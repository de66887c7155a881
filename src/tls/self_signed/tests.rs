use std::os::unix::fs::PermissionsExt;

use super::*;

const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)), 8443);

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn names_host_and_listen_address_for_one_year() {
    let pair = create(LISTEN).unwrap();
    assert_eq!(pair.concerns, []);
    let leaf = parse_certificate(&pair.key.cert[0]).unwrap();
    let subject = leaf.subject().to_string();
    assert!(
        subject.starts_with("O=kube-bastion, CN=kube-bastion-"),
        "{subject}"
    );
    let names = |alternative: &[&str]| Names {
        common_name: String::new(),
        alternative: alternative.iter().map(ToString::to_string).collect(),
    };
    let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
    assert!(names(&["localhost", "127.0.0.1", "::1", "192.0.2.7", &host]).are_in(&leaf));
    assert!(!names(&["192.0.2.8"]).are_in(&leaf));
    let validity = leaf.validity();
    let (from, until) = (
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    );
    let hours = (until - from) / 3600;
    assert_eq!(hours, 365 * 24 + 1, "a year and the hour before the start");
    assert!(from < unix_now());
    assert_eq!(pair.expires, until);
}

#[test]
fn names_an_address_of_this_host_if_it_listens_on_all() {
    let listen = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 8443);
    let names = Names::new(listen).alternative;
    assert!(!names.contains(&"0.0.0.0".to_owned()), "{names:?}");
}

#[test]
fn reuses_stored_certificate_until_its_names_change() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join("new").join(name);
    let load = |listen| load_or_create(&at(""), listen, true).unwrap();
    let first = load(LISTEN);
    assert_eq!(load(LISTEN).key.cert, first.key.cert);
    assert_eq!((mode(&at("tls.key")), mode(&at("ca.crt"))), (0o600, 0o644));
    assert_eq!(fs::read_dir(at("")).unwrap().count(), 3);
    let ca = load_certificates(&at("ca.crt")).unwrap();
    assert_eq!(ca, first.key.cert[1..], "the CA is in the chain");

    let other = SocketAddr::new(Ipv4Addr::new(192, 0, 2, 8).into(), 8443);
    let second = load(other);
    assert_ne!(second.key.cert, first.key.cert);
    assert_eq!(load(other).key.cert, second.key.cert);
}

#[test]
fn replaces_stored_certificate_that_does_not_fit_together() {
    for name in ["tls.key", "tls.crt", "ca.crt"] {
        let (directory, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let load = |path: &Path| load_or_create(path, LISTEN, true).unwrap().key.cert.clone();
        let first = load(directory.path());
        load(other.path());
        fs::copy(other.path().join(name), directory.path().join(name)).unwrap();
        let second = load(directory.path());
        assert_ne!(second, first, "{name}");
        assert_eq!(load(directory.path()), second, "{name}");
    }
}

#[test]
fn keeps_files_of_another_origin() {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    for (name, text) in [
        ("ca.crt", own.cert.pem()),
        ("tls.crt", own.cert.pem()),
        ("tls.crt", "notes".to_owned()),
        ("tls.key", own.signing_key.serialize_pem()),
    ] {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(name), &text).unwrap();
        let error = load_or_create(directory.path(), LISTEN, true).unwrap_err();
        let TlsError::SelfSigned(error @ SelfSignedError::Foreign { .. }) = &error else {
            panic!("{name}: {error}");
        };
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(
            fs::read_to_string(directory.path().join(name)).unwrap(),
            text
        );
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}

#[test]
fn writes_nothing_in_a_check() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().join("new");
    load_or_create(&at, LISTEN, false).unwrap();
    assert!(!at.exists());
}

#[test]
fn names_a_directory_that_cannot_be_written() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = load_or_create(&file.path().join("new"), LISTEN, true).unwrap_err();
    assert!(matches!(
        error,
        TlsError::SelfSigned(SelfSignedError::Write { .. })
    ));
}
