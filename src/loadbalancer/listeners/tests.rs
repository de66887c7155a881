mod admission;
mod bed;
mod udp;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use proxy_header::{ParseConfig, ProxyHeader};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::{pause, resume};

use super::*;
use bed::{Bed, Endpoints, listener, read_name, run, spec};

#[test]
fn connections_rotate_and_pass_in_both_directions() {
    run(async {
        let (bed, _endpoints) = Bed::web(&["127.0.0.2", "127.0.0.3"]).await;
        let key = bed.serve(Protocol::Tcp, spec("web")).await;
        let (first, second) = (bed.name(key).await, bed.name(key).await);
        let mut names = [first, second, bed.name(key).await, bed.name(key).await];
        names.sort();
        assert_eq!(names, ["127.0.0.2", "127.0.0.2", "127.0.0.3", "127.0.0.3"]);
        let mut client = bed.connect(key).await;
        read_name(&mut client).await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut echo = String::new();
        client.read_to_string(&mut echo).await.unwrap();
        assert_eq!(echo, "question");
        bed.wait_for("load_balancer_connections_open 0").await;
        bed.wait_for(r#"load_balancer_bytes_total{direction="received"} 8"#)
            .await;
    });
}

#[test]
fn client_of_dead_endpoints_gets_the_next() {
    run(async {
        let mut bed = Bed::start();
        let endpoints = Endpoints::start(&["127.0.0.2"]).await;
        // Nothing listens on its port of the others.
        let dead = [9, 10, 11, 12, 13].map(|last| format!("127.0.0.{last}"));
        let dead = dead.iter().map(String::as_str);
        let addresses: Vec<_> = ["127.0.0.2"].into_iter().chain(dead).collect();
        bed.publish_addresses("web", endpoints.port, &addresses);
        let key = bed.serve(Protocol::Tcp, spec("web")).await;
        for _ in 0..7 {
            assert_eq!(bed.name(key).await, "127.0.0.2");
        }
    });
}

#[test]
fn connection_without_endpoint_is_reset() {
    run(async {
        let mut bed = Bed::start();
        let key = bed.serve(Protocol::Tcp, spec("web")).await;
        assert!(bed.is_reset(key).await);
        // An endpoint of another node does not serve the Local policy.
        let endpoints = Endpoints::start(&["127.0.0.2"]).await;
        bed.publish("web", &endpoints);
        assert_eq!(bed.name(key).await, "127.0.0.2");
        let local = ListenerSpec {
            local_only: true,
            ..spec("web")
        };
        bed.change(key, Some(local));
        bed.wait_for_reset(key).await;
    });
}

#[test]
fn listeners_of_other_replicas_are_no_endpoints() {
    run(async {
        let (mut bed, endpoints) = Bed::web(&["127.0.0.2", "127.0.0.3"]).await;
        // That of this machine, too, so that the process is on the network of the nodes.
        bed.publish_node("127.0.0.1");
        bed.publish_node("127.0.0.2");
        let tcp = bed.serve(Protocol::Tcp, spec("web")).await;
        let udp = bed.serve(Protocol::Udp, spec("web")).await;
        // Another port of a node.
        let mut names = [bed.name(tcp).await, bed.name(tcp).await];
        names.sort();
        assert_eq!(names, ["127.0.0.2", "127.0.0.3"]);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            // A replica at 127.0.0.2 has this listener, too.
            let key = listener(endpoints.port, protocol);
            bed.change(key, Some(spec("none")));
            bed.wait_until_open(key).await;
        }
        for _ in 0..4 {
            assert_eq!(bed.name(tcp).await, "127.0.0.3");
            // A flow of its own.
            let client = bed.datagrams(udp).await;
            assert_eq!(bed.ask_until_answered(&client).await, "127.0.0.3");
        }
        // One of them is no client, either: it would take the answer for a datagram of one.
        let replica = UdpSocket::bind(("127.0.0.2", udp.port)).await.unwrap();
        replica
            .send_to(b"x", (udp.address, udp.port))
            .await
            .unwrap();
        bed.wait_for(r#"load_balancer_datagrams_dropped_total{reason="source_address"} 1"#)
            .await;
        bed.publish_node("127.0.0.3");
        assert!(bed.is_reset(tcp).await);
    });
}

#[test]
fn listeners_of_both_families_have_one_number() {
    run(async {
        let (bed, _endpoints) = Bed::web(&["127.0.0.2"]).await;
        let port = bed::free_port();
        let key = |address: &str, protocol| ListenerKey {
            address: address.parse().unwrap(),
            port,
            protocol,
        };
        let only = |range: &str| ListenerSpec {
            source_ranges: Some([range.parse().unwrap()].into_iter().collect()),
            ..spec("web")
        };
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            bed.change(key("0.0.0.0", protocol), Some(spec("web")));
            bed.change(key("::", protocol), Some(only("::1/128")));
        }
        for address in ["127.0.0.1", "::1"] {
            bed.wait_for_name(key(address, Protocol::Tcp)).await;
            assert_eq!(
                bed.name(key(address, Protocol::Tcp)).await,
                "127.0.0.2",
                "{address}"
            );
            let client = UdpSocket::bind((address, 0)).await.unwrap();
            // It accepts answers of the address that it asks only.
            client.connect((address, port)).await.unwrap();
            let name = bed.ask_until_answered(&client).await;
            assert_eq!(name, "127.0.0.2", "{address}");
        }
        bed.change(key("::", Protocol::Tcp), Some(only("4700::/32")));
        bed.wait_for_reset(key("::1", Protocol::Tcp)).await;
        assert_eq!(bed.name(key("127.0.0.1", Protocol::Tcp)).await, "127.0.0.2");
    });
}

#[test]
fn tcp_and_udp_of_one_number_are_two_listeners() {
    run(async {
        let mut bed = Bed::start();
        let (web, dns) = (
            Endpoints::start(&["127.0.0.2"]).await,
            Endpoints::start(&["127.0.0.3"]).await,
        );
        bed.publish("web", &web);
        bed.publish("dns", &dns);
        let tcp = bed.serve(Protocol::Tcp, spec("web")).await;
        let udp = ListenerKey {
            protocol: Protocol::Udp,
            ..tcp
        };
        bed.change(udp, Some(spec("dns")));
        let client = bed.datagrams(udp).await;
        assert_eq!(bed.ask_until_answered(&client).await, "127.0.0.3");
        assert_eq!(bed.name(tcp).await, "127.0.0.2");
    });
}

#[test]
fn tcp_and_udp_of_one_service_port_have_their_own_targets() {
    run(async {
        let mut bed = Bed::start();
        let web = Endpoints::start(&["127.0.0.2"]).await;
        let dns = Endpoints::start(&["127.0.0.3"]).await;
        // Both are targets of each port, but only one serves it.
        let addresses = ["127.0.0.2", "127.0.0.3"];
        bed.publish_ports("both", (web.port, dns.port), &addresses);
        let tcp = bed.serve(Protocol::Tcp, spec("both")).await;
        let udp = bed.serve(Protocol::Udp, spec("both")).await;
        assert_eq!(bed.name(tcp).await, "127.0.0.2");
        let client = bed.datagrams(udp).await;
        assert_eq!(bed.ask_until_answered(&client).await, "127.0.0.3");
    });
}

#[test]
fn listener_that_is_changed_or_removed_keeps_its_connections() {
    run(async {
        let (bed, _endpoints) = Bed::web(&["127.0.0.2"]).await;
        let key = bed.serve(Protocol::Tcp, spec("web")).await;
        let other = bed.serve(Protocol::Tcp, spec("web")).await;
        let mut client = bed.connect(key).await;
        assert_eq!(read_name(&mut client).await, "127.0.0.2");
        let mut untouched = bed.connect(other).await;
        assert_eq!(read_name(&mut untouched).await, "127.0.0.2");
        // The new specification rejects all clients.
        let excluding = ListenerSpec {
            source_ranges: Some(["192.0.2.0/24".parse().unwrap()].into_iter().collect()),
            local_only: true,
            ..spec("web")
        };
        let changed = bed.serve(Protocol::Tcp, spec("web")).await;
        let mut of_changed = bed.connect(changed).await;
        assert_eq!(read_name(&mut of_changed).await, "127.0.0.2");
        bed.change(changed, Some(excluding));
        bed.wait_for_reset(changed).await;
        bed.change(key, None);
        bed.wait_until_closed(key).await;
        for client in [&mut client, &mut untouched, &mut of_changed] {
            client.write_all(b"still open").await.unwrap();
            let mut echo = [0; 10];
            client.read_exact(&mut echo).await.unwrap();
            assert_eq!(&echo, b"still open");
        }
        assert_eq!(bed.name(other).await, "127.0.0.2");
        // The port can be served again immediately.
        bed.change(key, Some(spec("web")));
        bed.wait_for_name(key).await;
    });
}

#[test]
fn client_over_its_share_is_reset() {
    run(async {
        let mut bed = Bed::with_limits(&ListenerLimits::new(0, 1), (0, 1));
        let endpoints = Endpoints::start(&["127.0.0.2"]).await;
        bed.publish("web", &endpoints);
        let key = bed.serve(Protocol::Tcp, spec("web")).await;
        let mut client = bed.connect(key).await;
        assert_eq!(read_name(&mut client).await, "127.0.0.2");
        assert!(bed.is_reset(key).await);
        bed.wait_for(r#"connections_accepted_total{result="client_share"} 1"#)
            .await;
        drop(client);
        bed.wait_for_name(key).await;
    });
}

#[test]
fn drain_closes_listeners_and_its_end_resets_connections() {
    run(async {
        let (bed, _endpoints) = Bed::web(&["127.0.0.2"]).await;
        let key = bed.serve(Protocol::Tcp, spec("web")).await;
        let mut client = bed.connect(key).await;
        assert_eq!(read_name(&mut client).await, "127.0.0.2");
        bed.drain.begin();
        bed.wait_until_closed(key).await;
        client.write_all(b"x").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'x');
        bed.drain.force();
        let error = client.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn affinity_keeps_the_endpoint_of_a_client() {
    run(async {
        let (mut bed, endpoints) = Bed::web(&["127.0.0.2", "127.0.0.3", "127.0.0.4"]).await;
        let sticky = ListenerSpec {
            client_affinity: Some(Duration::from_hours(3)),
            ..spec("web")
        };
        let key = bed.serve(Protocol::Tcp, sticky.clone()).await;
        let first = bed.name(key).await;
        for _ in 0..5 {
            assert_eq!(bed.name(key).await, first);
        }
        // Its endpoint is gone: another one, and then that.
        let rest: Vec<_> = endpoints.addresses();
        let rest: Vec<_> = rest
            .iter()
            .map(String::as_str)
            .filter(|it| *it != first)
            .collect();
        bed.publish_addresses("web", endpoints.port, &rest);
        let second = bed.name(key).await;
        assert_ne!(second, first);
        bed.publish("web", &endpoints);
        for _ in 0..5 {
            assert_eq!(bed.name(key).await, second);
        }
        let udp = bed.serve(Protocol::Udp, sticky).await;
        let client = bed.datagrams(udp).await;
        let first = bed.ask_until_answered(&client).await;
        for _ in 0..5 {
            let client = bed.datagrams(udp).await;
            assert_eq!(bed.ask_until_answered(&client).await, first);
        }
    });
}

#[test]
fn clients_that_keep_their_endpoint_take_no_turns() {
    run(async {
        let (bed, _endpoints) = Bed::web(&["127.0.0.2", "127.0.0.3", "127.0.0.4"]).await;
        let sticky = ListenerSpec {
            client_affinity: Some(Duration::from_hours(3)),
            ..spec("web")
        };
        let key = bed.serve(Protocol::Tcp, sticky).await;
        let mut names = std::collections::BTreeSet::new();
        for last in 1..=3 {
            let client = IpAddr::from([127, 0, 1, last]);
            for _ in 0..3 {
                names.insert(bed.name_from(client, key).await);
            }
        }
        assert_eq!(names.len(), 3, "{names:?}");
    });
}

#[test]
fn endpoint_gets_header_of_the_proxy_protocol() {
    run(async {
        let mut bed = Bed::start();
        let endpoint = TcpListener::bind("127.0.0.2:0").await.unwrap();
        let port = endpoint.local_addr().unwrap().port();
        bed.publish_addresses("web", port, &["127.0.0.2"]);
        let with_header = ListenerSpec {
            proxy_protocol: true,
            ..spec("web")
        };
        for address in [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            Ipv6Addr::LOCALHOST.into(),
        ] {
            let key = ListenerKey {
                address,
                ..listener(bed::free_port(), Protocol::Tcp)
            };
            bed.change(key, Some(with_header.clone()));
            bed.wait_until_open(key).await;
            let mut client = bed.connect(key).await;
            client.write_all(b"hello").await.unwrap();
            client.shutdown().await.unwrap();
            let mut received = Vec::new();
            let (mut stream, _) = endpoint.accept().await.unwrap();
            stream.read_to_end(&mut received).await.unwrap();
            let config = ParseConfig {
                include_tlvs: false,
                allow_v1: false,
                allow_v2: true,
            };
            let (header, length) = ProxyHeader::parse(&received, config).unwrap();
            let addresses = header.proxied_address().unwrap();
            assert_eq!(addresses.source, client.local_addr().unwrap());
            assert_eq!(addresses.destination, client.peer_addr().unwrap());
            assert_eq!(&received[length..], b"hello");
        }
    });
}

#[test]
fn taken_port_is_reported_until_it_is_free() {
    run(async {
        let bed = Bed::start();
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let key = listener(taken.local_addr().unwrap().port(), Protocol::Tcp);
        let free = listener(bed::free_port(), Protocol::Tcp);
        bed.change(key, Some(spec("web")));
        bed.change(free, Some(spec("web")));
        let mut report = bed.report.clone();
        let reported = report.wait_for(|it| !it.failures.is_empty()).await;
        let reported = reported.unwrap().clone();
        let failures = &reported.failures;
        assert!(failures[&key].contains("in use"), "{reported:?}");
        assert_eq!(failures.len(), 1);
        assert!(!reported.bound.contains(&key));
        drop(taken);
        let cleared = report
            .wait_for(|it| it.is_settled(&key) && it.failures.is_empty())
            .await;
        cleared.unwrap();
        assert!(bed.is_reset(key).await, "no endpoint");
    });
}

#[test]
fn endpoint_that_is_the_listener_itself_is_not_dialed() {
    run(async {
        let mut bed = Bed::start();
        let port = bed::free_port();
        bed.publish_addresses("web", port, &["127.0.0.1"]);
        let (tcp, udp) = (listener(port, Protocol::Tcp), listener(port, Protocol::Udp));
        bed.change(tcp, Some(spec("web")));
        bed.change(udp, Some(spec("web")));
        bed.wait_until_open(tcp).await;
        assert!(bed.is_reset(tcp).await);
        let client = bed.datagrams(udp).await;
        client.send(b"x").await.unwrap();
        bed.wait_for(r#"load_balancer_datagrams_dropped_total{reason="no_endpoint"} 1"#)
            .await;
        let connected = TcpStream::connect(("127.0.0.1", port)).await;
        assert!(connected.is_ok_and(|stream| stream.peer_addr().is_ok()));
    });
}

#[test]
fn listener_that_cannot_be_started_is_tried_again() {
    run(async {
        let bed = Bed::start();
        let flows: Flows = Rc::new(RefCell::new(FlowTable::new(FlowBudget::new(1))));
        let bound = |socket: OwnedFd| {
            let socket = std::net::TcpListener::from(socket);
            socket.set_nonblocking(true).unwrap();
            Bound {
                spec: Arc::new(spec("web")),
                socket: Arc::new(Socket::Tcp(socket)),
            }
        };
        let key = listener(80, Protocol::Tcp);
        // The runtime cannot wait for a file.
        let file = bound(tempfile::tempfile().unwrap().into());
        let mut serving = Serving::default();
        for _ in 0..2 {
            let listeners = BoundListeners::from([(key, file.clone())]);
            assert!(!serving.update(&bed.idle, &listeners, &flows));
            assert!(serving.listeners.is_empty());
        }
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listeners = BoundListeners::from([(key, bound(socket.into()))]);
        assert!(serving.update(&bed.idle, &listeners, &flows));
        // A task that has ended does not serve.
        serving.listeners[&key].task.abort();
        assert!(serving.tasks.join_next().await.unwrap().is_err());
        assert!(serving.update(&bed.idle, &listeners, &flows));
        assert_eq!((serving.listeners.len(), serving.tasks.len()), (1, 1));
        assert!(!serving.listeners[&key].task.is_finished());
    });
}

#[test]
fn connections_beyond_the_limit_wait() {
    run(async {
        let mut bed = Bed::with_limits(&ListenerLimits::new(1, 0), (0, 1));
        let endpoints = Endpoints::start(&["127.0.0.2"]).await;
        bed.publish("web", &endpoints);
        let key = bed.serve(Protocol::Tcp, spec("web")).await;
        let mut first = bed.connect(key).await;
        assert_eq!(read_name(&mut first).await, "127.0.0.2");
        let mut second = bed.connect(key).await;
        let waits = tokio::time::timeout(Duration::from_millis(100), second.read_u8());
        assert!(waits.await.is_err());
        drop(first);
        assert_eq!(read_name(&mut second).await, "127.0.0.2");
    });
}

#[test]
fn connection_that_has_waited_is_served_by_the_changed_listener() {
    run(async {
        let mut bed = Bed::with_limits(&ListenerLimits::new(1, 0), (0, 1));
        let (web, dns) = (
            Endpoints::start(&["127.0.0.2"]).await,
            Endpoints::start(&["127.0.0.3"]).await,
        );
        bed.publish("web", &web);
        bed.publish("dns", &dns);
        let key = bed.serve(Protocol::Tcp, spec("web")).await;
        let foreign = ListenerSpec {
            source_ranges: Some(["4700::/32".parse().unwrap()].into_iter().collect()),
            ..spec("web")
        };
        let mut open = bed.connect(key).await;
        assert_eq!(read_name(&mut open).await, "127.0.0.2");
        for (changed, name) in [(spec("dns"), Some("127.0.0.3")), (foreign, None)] {
            let mut waiting = bed.connect(key).await;
            let waits = tokio::time::timeout(Duration::from_millis(100), waiting.read_u8());
            assert!(waits.await.is_err());
            bed.change(key, Some(changed));
            bed.wait_until_applied().await;
            drop(open);
            if let Some(name) = name {
                assert_eq!(read_name(&mut waiting).await, name);
            } else {
                let error = waiting.read_u8().await.unwrap_err();
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
            }
            open = waiting;
        }
    });
}
