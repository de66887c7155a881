use serde_json::{Value, json};

use super::*;

fn read(annotations: &Value, spec: &Value) -> Result<Request, Problem> {
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "shop", "annotations": annotations},
        "spec": spec,
    }))
    .unwrap();
    let published = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "lb.test"];
    let published = published.map(|text| parse_published_address(text).unwrap());
    let bind = ["192.0.2.1", "192.0.2.2", "::"].map(|text| text.parse().unwrap());
    Request::read(&service, &published, &bind)
}

fn ranges(annotations: &Value, ranges: &Value) -> Result<Vec<String>, &'static str> {
    let request = read(annotations, &json!({"loadBalancerSourceRanges": ranges}));
    let request = request.map_err(|problem| problem.reason())?;
    let networks = request.source_ranges.unwrap_or_default();
    Ok(networks.iter().map(|network| network.to_string()).collect())
}

#[test]
fn reads_source_ranges_of_both_families_and_forms() {
    let none = json!({});
    let legacy = |text: &str| json!({SOURCE_RANGES: text});
    let both = json!(["199.199.199.199/32", " 4700::/32 "]);
    for (annotations, field, expected) in [
        (none.clone(), json!([]), &[][..]),
        (none.clone(), both, &["199.199.199.199/32", "4700::/32"]),
        (none, json!(["10.1.2.3/8"]), &["10.0.0.0/8"]),
        (
            legacy(" 10.0.0.0/8, fd00::/8 "),
            json!([]),
            &["10.0.0.0/8", "fd00::/8"],
        ),
        (legacy(" "), json!([]), &[]),
        (
            legacy("10.0.0.0/8"),
            json!(["192.0.2.0/24"]),
            &["192.0.2.0/24"],
        ),
        // The field decides, also over a malformed annotation.
        (
            legacy("nonsense"),
            json!(["192.0.2.0/24"]),
            &["192.0.2.0/24"],
        ),
    ] {
        assert_eq!(
            ranges(&annotations, &field).unwrap(),
            expected,
            "{annotations} {field}"
        );
    }
}

#[test]
fn rejects_request_with_an_invalid_source_range() {
    let legacy = |text: &str| json!({SOURCE_RANGES: text});
    for (annotations, field) in [
        (json!({}), json!(["10.0.0.0/8", "nonsense"])),
        (json!({}), json!([""])),
        (json!({}), json!(["10.0.0.1"])),
        (json!({}), json!(["10.0.0.0/33"])),
        (json!({}), json!(["010.0.0.0/8"])),
        (legacy("10.0.0.0/8,"), json!([])),
        (legacy("10.0.0.0/8;192.0.2.0/24"), json!([])),
    ] {
        let read = ranges(&annotations, &field);
        assert_eq!(read, Err("InvalidSourceRanges"), "{annotations} {field}");
    }
}

#[test]
fn selects_addresses_by_families_and_request() {
    let addresses = |annotations: &Value, spec: &Value| -> Result<Vec<String>, &'static str> {
        let request = read(annotations, spec).map_err(|problem| problem.reason())?;
        let all = request.addresses.iter();
        Ok(all
            .map(|(address, bind)| format!("{address} {bind:?}"))
            .collect())
    };
    let none = json!({});
    let annotated = |text: &str| json!({ADDRESSES: text});
    let v4 = json!({"ipFamilies": ["IPv4"]});
    for (annotations, spec, expected) in [
        (
            &none,
            json!({"ipFamilies": ["IPv4", "IPv6"]}),
            Ok(vec![
                "192.0.2.1 [192.0.2.1]",
                "192.0.2.2 [192.0.2.2]",
                "2001:db8::1 [::]",
                "lb.test [192.0.2.1, 192.0.2.2, ::]",
            ]),
        ),
        (
            &none,
            json!({"ipFamilies": ["IPv6"]}),
            Ok(vec!["2001:db8::1 [::]", "lb.test [::]"]),
        ),
        (
            &none,
            json!({"loadBalancerIP": "192.0.2.2"}),
            Ok(vec!["192.0.2.2 [192.0.2.2]"]),
        ),
        (
            &annotated("192.0.2.2, 2001:DB8::1"),
            json!({"loadBalancerIP": "192.0.2.1"}),
            Ok(vec!["192.0.2.2 [192.0.2.2]", "2001:db8::1 [::]"]),
        ),
        (&annotated("2001:db8::1"), v4.clone(), Err("NoAddress")),
        (
            &none,
            json!({"loadBalancerIP": "192.0.2.3"}),
            Err("AddressNotConfigured"),
        ),
        (
            &annotated("192.0.2.3"),
            v4.clone(),
            Err("AddressNotConfigured"),
        ),
        (
            &annotated("192.0.2.1;192.0.2.2"),
            v4,
            Err("InvalidAnnotation"),
        ),
    ] {
        let expected = expected.map(|all| all.into_iter().map(String::from).collect());
        assert_eq!(
            addresses(annotations, &spec),
            expected,
            "{annotations} {spec}"
        );
    }
}

#[test]
fn divides_the_published_addresses_by_the_request() {
    for (requested, expected) in [
        (
            "192.0.2.1",
            Some((&["192.0.2.1"][..], &["192.0.2.2", "2001:db8::1"][..])),
        ),
        (
            "192.0.2.2, 2001:db8::1",
            Some((&["192.0.2.2", "2001:db8::1"], &["192.0.2.1"])),
        ),
        // A name may lead to any address.
        ("lb.test", None),
        ("192.0.2.1, lb.test", None),
    ] {
        let request = read(&json!({ADDRESSES: requested}), &json!({})).unwrap();
        let ips = |all: &[&str]| all.iter().map(|ip| ip.parse().unwrap()).collect();
        let expected = expected.map(|(requested, others)| {
            Arc::new(RequestedAddresses {
                requested: ips(requested),
                others: ips(others),
            })
        });
        assert_eq!(request.requested, expected, "{requested}");
    }
    assert_eq!(read(&json!({}), &json!({})).unwrap().requested, None);
}

#[test]
fn sends_proxy_protocol_by_the_annotation_alone() {
    for (annotations, expected) in [
        (json!({}), Ok(false)),
        (json!({PROXY_PROTOCOL: "v2"}), Ok(true)),
        (json!({PROXY_PROTOCOL: ""}), Ok(false)),
        (json!({PROXY_PROTOCOL: "v1"}), Err("InvalidAnnotation")),
        (json!({PROXY_PROTOCOL: "true"}), Err("InvalidAnnotation")),
    ] {
        let read = read(&annotations, &json!({}));
        let read = read.map(|request| request.proxy_protocol);
        assert_eq!(
            read.map_err(|problem| problem.reason()),
            expected,
            "{annotations}"
        );
    }
}
