//! Clients and endpoints that are rejected by their addresses.

use super::*;
use crate::loadbalancer::RequestedAddresses;

#[test]
fn ports_of_nodes_are_those_of_replicas_on_the_host_network_only() {
    run(async {
        for (node, expected) in [("192.0.2.1", false), ("127.0.0.1", true)] {
            let mut bed = Bed::start();
            bed.publish_node(node);
            let key = bed.serve(Protocol::Tcp, spec("web")).await;
            let at_node = SocketAddr::new(node.parse().unwrap(), key.port);
            let is_of_replica = bed.idle.is_of_replica(Protocol::Tcp, at_node);
            assert_eq!(is_of_replica, expected, "{node}");
        }
    });
}

#[test]
fn service_is_not_served_at_a_published_address_of_others() {
    run(async {
        let (bed, _endpoints) = Bed::web(&["127.0.0.2"]).await;
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let key = ListenerKey {
                address: Ipv4Addr::UNSPECIFIED.into(),
                ..listener(bed::free_port(), protocol)
            };
            let only = |requested: [u8; 4]| ListenerSpec {
                addresses: Some(Arc::new(RequestedAddresses {
                    requested: vec![requested.into()],
                    others: vec![Ipv4Addr::new(127, 0, 0, 5).into()],
                })),
                ..spec("web")
            };
            bed.change(key, Some(only([127, 0, 0, 1])));
            bed.wait_until_open(key).await;
            let at = |address: [u8; 4]| ListenerKey {
                address: address.into(),
                ..key
            };
            let (own, other) = (at([127, 0, 0, 1]), at([127, 0, 0, 5]));
            if protocol == Protocol::Tcp {
                bed.wait_for_name(own).await;
                assert!(bed.is_reset(other).await);
                bed.wait_for(r#"load_balancer_connections_accepted_total{result="address"} 1"#)
                    .await;
                // That of a router, which translates it.
                bed.change(key, Some(only([192, 0, 2, 1])));
                bed.wait_for_name(other).await;
            } else {
                let client = bed.datagrams(other).await;
                client.send(b"x").await.unwrap();
                bed.wait_for(r#"load_balancer_datagrams_dropped_total{reason="address"} 1"#)
                    .await;
                let client = bed.datagrams(own).await;
                assert_eq!(bed.ask_until_answered(&client).await, "127.0.0.2");
            }
        }
    });
}

#[test]
fn source_ranges_apply_to_tcp_and_udp() {
    run(async {
        let (bed, _endpoints) = Bed::web(&["127.0.0.2"]).await;
        let ranges = |text: &[&str]| ListenerSpec {
            source_ranges: Some(text.iter().map(|it| it.parse().unwrap()).collect()),
            ..spec("web")
        };
        let foreign = ranges(&["199.199.199.199/32", "4700::/32"]);
        let tcp = bed.serve(Protocol::Tcp, foreign.clone()).await;
        let udp = bed.serve(Protocol::Udp, foreign).await;
        assert!(bed.is_reset(tcp).await);
        let client = bed.datagrams(udp).await;
        client.send(b"x").await.unwrap();
        bed.wait_for(r#"load_balancer_datagrams_dropped_total{reason="source_range"} 1"#)
            .await;

        let own = ranges(&["4700::/32", "127.0.0.0/8"]);
        bed.change(tcp, Some(own.clone()));
        bed.change(udp, Some(own));
        bed.wait_for_name(tcp).await;
        assert_eq!(bed.ask_until_answered(&client).await, "127.0.0.2");
    });
}
