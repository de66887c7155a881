//! The id grammar and the path rules. No path causes a panic, leaves the root of the target, or
//! changes its meaning when it is parsed again.
#![no_main]

use kube_bastion::model::Target;
use kube_bastion::model::path::{SubPathDecoding, without_dot_segments};
use libfuzzer_sys::fuzz_target;
use percent_encoding::percent_decode_str;

fuzz_target!(|path: &str| {
    // A valid prefix for half of the inputs, because random paths rarely have one.
    let spelled = path
        .strip_prefix('@')
        .map(|rest| format!("/api/v1/namespaces/ns/pods/{rest}"));
    let path = spelled.as_deref().unwrap_or(path);
    let Ok(target) = Target::parse(path) else {
        return;
    };
    assert_eq!([target.prefix, target.rest].concat(), path);

    let backend = target.sub_path(SubPathDecoding::default());
    assert!(backend.starts_with('/'), "{backend}");
    for segment in backend.split('/') {
        let decoded: Vec<u8> = percent_decode_str(segment).collect();
        assert!(decoded != b"." && decoded != b"..", "{backend}");
    }
    assert_eq!(without_dot_segments(&backend), backend, "once is enough");

    let plain = target.plain_prefix();
    let again = Target::parse(&plain).expect("a plain prefix is a path");
    assert_eq!(
        (again.resource, &again.namespace, &again.id),
        (target.resource, &target.namespace, &target.id)
    );
    assert!(again.rest.is_empty());

    if let Ok(id) = target.id() {
        assert!(!id.name.is_empty() && !id.name.contains(':') && !id.port.contains(':'));
        assert!(target.id.contains(id.name) && target.id.ends_with(id.port));
    }
});
