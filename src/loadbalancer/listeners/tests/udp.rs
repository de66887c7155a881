//! Flows of UDP.

use super::*;

#[test]
fn udp_flow_moves_when_its_pod_is_replaced() {
    run(async {
        let mut bed = Bed::start();
        let old = Endpoints::start(&["127.0.0.2"]).await;
        let new = Endpoints::start_on(old.port, &["127.0.0.3"]).await;
        bed.publish("web", &old);
        let key = bed.serve(Protocol::Udp, spec("web")).await;
        let client = bed.datagrams(key).await;
        assert_eq!(bed.ask_until_answered(&client).await, "127.0.0.2");
        bed.publish("web", &new);
        // The same source port, the next datagram.
        assert_eq!(bed::ask(&client).await, "127.0.0.3");
        // Its process ends, while the index still has it: the ICMP message ends the flow.
        let third = Endpoints::start_on(old.port, &["127.0.0.4"]).await;
        bed.publish_addresses("web", old.port, &["127.0.0.3", "127.0.0.4"]);
        drop(new);
        assert_eq!(bed.ask_until_answered(&client).await, "127.0.0.4");
        drop(third);
    });
}

#[test]
fn udp_flows_end_when_another_service_takes_their_listener() {
    run(async {
        let (mut bed, _endpoints) = Bed::web(&["127.0.0.2"]).await;
        let endpoint = UdpSocket::bind("127.0.0.3:0").await.unwrap();
        bed.publish_addresses("dns", endpoint.local_addr().unwrap().port(), &["127.0.0.3"]);
        let key = bed.serve(Protocol::Udp, spec("dns")).await;
        let other = bed.serve(Protocol::Udp, spec("web")).await;
        let (client, untouched) = (bed.datagrams(key).await, bed.datagrams(other).await);
        assert_eq!(bed.ask_until_answered(&untouched).await, "127.0.0.2");
        client.send(b"x").await.unwrap();
        let (_, flow) = endpoint.recv_from(&mut [0; 8]).await.unwrap();
        // Another setting of the same Service ends nothing.
        let sticky = ListenerSpec {
            client_affinity: Some(Duration::from_hours(3)),
            ..spec("dns")
        };
        bed.change(key, Some(sticky));
        bed.wait_until_applied().await;
        endpoint.send_to(b"answer", flow).await.unwrap();
        let mut answer = [0; 8];
        assert_eq!(client.recv(&mut answer).await.unwrap(), 6);
        bed.change(key, Some(spec("web")));
        bed.wait_until_applied().await;
        bed.wait_for("load_balancer_flows_open 1").await;
        // The client has an answer of the new Service only.
        let _ = endpoint.send_to(b"late", flow).await;
        assert_eq!(bed.ask_until_answered(&client).await, "127.0.0.2");
    });
}

#[test]
fn udp_flow_ends_when_source_ranges_exclude_its_client() {
    run(async {
        let mut bed = Bed::start();
        let endpoint = UdpSocket::bind("127.0.0.3:0").await.unwrap();
        bed.publish_addresses("dns", endpoint.local_addr().unwrap().port(), &["127.0.0.3"]);
        let key = bed.serve(Protocol::Udp, spec("dns")).await;
        let client = bed.datagrams(key).await;
        client.send(b"x").await.unwrap();
        let _ = endpoint.recv_from(&mut [0; 8]).await.unwrap();
        bed.wait_for("load_balancer_flows_open 1").await;
        let excluding = ListenerSpec {
            source_ranges: Some(["192.0.2.0/24".parse().unwrap()].into_iter().collect()),
            ..spec("dns")
        };
        bed.change(key, Some(excluding));
        bed.wait_for("load_balancer_flows_open 0").await;
    });
}

#[test]
fn datagram_behind_one_to_a_closed_port_reaches_another_endpoint() {
    run(async {
        let mut bed = Bed::start();
        let first = Endpoints::start(&["127.0.0.2"]).await;
        let second = Endpoints::start_on(first.port, &["127.0.0.3"]).await;
        bed.publish_addresses("web", first.port, &["127.0.0.2", "127.0.0.3"]);
        let key = bed.serve(Protocol::Udp, spec("web")).await;
        drop(second);
        for _ in 0..50 {
            let client = bed.datagrams(key).await;
            // With the second datagram, the flow either receives the ICMP message or sends first.
            client.send(b"lost, if to 127.0.0.3").await.unwrap();
            client.send(b"name?").await.unwrap();
            let mut answer = [0; 64];
            let length = tokio::time::timeout(bed::PATIENCE, client.recv(&mut answer));
            let length = length.await.expect("an answer").unwrap();
            assert_eq!(answer[..length], *b"127.0.0.2");
        }
    });
}

#[test]
fn client_does_not_keep_an_endpoint_whose_port_is_closed() {
    run(async {
        let mut bed = Bed::start();
        let first = Endpoints::start(&["127.0.0.2"]).await;
        let second = Endpoints::start_on(first.port, &["127.0.0.3"]).await;
        let addresses = ["127.0.0.2", "127.0.0.3"];
        bed.publish_addresses("web", first.port, &addresses);
        let sticky = ListenerSpec {
            client_affinity: Some(Duration::from_hours(3)),
            ..spec("web")
        };
        let key = bed.serve(Protocol::Udp, sticky).await;
        let client = bed.datagrams(key).await;
        let used = bed.ask_until_answered(&client).await;
        let [ended, other] = if used == addresses[0] {
            [first, second]
        } else {
            [second, first]
        };
        drop(ended);
        let name = bed.ask_until_answered(&client).await;
        assert_eq!([name], other.addresses()[..]);
    });
}

#[test]
fn udp_answers_come_from_the_address_that_was_asked() {
    run(async {
        let (bed, _endpoints) = Bed::web(&["127.0.0.2"]).await;
        let key = ListenerKey {
            address: IpAddr::from([0, 0, 0, 0]),
            ..listener(bed::free_port(), Protocol::Udp)
        };
        bed.change(key, Some(spec("web")));
        for address in ["127.0.0.5", "127.0.0.6"] {
            // A connected socket receives datagrams of this address only.
            let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            client.connect((address, key.port)).await.unwrap();
            assert_eq!(bed.ask_until_answered(&client).await, "127.0.0.2");
        }
    });
}

#[test]
fn idle_udp_flows_expire() {
    run(async {
        let mut bed = Bed::start();
        let endpoints = Endpoints::start(&["127.0.0.2"]).await;
        let silent = UdpSocket::bind("127.0.0.3:0").await.unwrap();
        bed.publish("web", &endpoints);
        bed.publish_addresses("dns", silent.local_addr().unwrap().port(), &["127.0.0.3"]);
        let (answered, unanswered) = (
            bed.serve(Protocol::Udp, spec("web")).await,
            bed.serve(Protocol::Udp, spec("dns")).await,
        );
        let client = bed.datagrams(answered).await;
        bed.ask_until_answered(&client).await;
        let other = bed.datagrams(unanswered).await;
        other.send(b"x").await.unwrap();
        silent.recv(&mut [0; 8]).await.unwrap();
        bed.wait_for("load_balancer_flows_open 2").await;
        pause();
        tokio::time::sleep(flow::UNANSWERED_TIMEOUT + Duration::from_secs(1)).await;
        bed.wait_for("load_balancer_flows_open 1").await;
        tokio::time::sleep(flow::ANSWERED_TIMEOUT).await;
        bed.wait_for("load_balancer_flows_open 0").await;
        resume();
    });
}

#[test]
fn one_listener_may_have_all_flows_and_keeps_nothing_of_them() {
    const FLOWS: u16 = 10_000;
    run(async {
        let limits = ListenerLimits {
            flows: FlowBudget::new(FLOWS.into()),
            ..ListenerLimits::new(0, 0)
        };
        let mut bed = Bed::with_limits(&limits, (0, 4));
        let silent = UdpSocket::bind("127.0.0.3:0").await.unwrap();
        bed.publish_addresses("dns", silent.local_addr().unwrap().port(), &["127.0.0.3"]);
        let ports = std::iter::repeat_with(bed::free_port);
        let mut keys = ports.map(|port| listener(port, Protocol::Udp));
        let key = keys.find(|key| home(key, 4) == 0).unwrap();
        bed.change(key, Some(spec("dns")));
        bed.wait_until_open(key).await;
        for number in 1..=FLOWS {
            let [high, low] = number.to_be_bytes();
            let client = IpAddr::from([127, 1, high, low]);
            let client = std::net::UdpSocket::bind((client, 0)).unwrap();
            client.send_to(b"x", (key.address, key.port)).unwrap();
            // As many as the buffer of the listener takes.
            if number % 100 == 0 {
                bed.wait_for(&format!("load_balancer_flows_open {number}"))
                    .await;
            }
        }
        let free = || bed.idle.limits.flows.free();
        assert_eq!(free(), 0);
        bed.wait_for("load_balancer_flows_evicted_total 0").await;
        pause();
        tokio::time::sleep(flow::UNANSWERED_TIMEOUT + Duration::from_secs(1)).await;
        bed.wait_for("load_balancer_flows_open 0").await;
        assert_eq!(free(), usize::from(FLOWS));
        resume();
    });
}

#[test]
fn datagram_of_a_listener_is_dropped() {
    run(async {
        let (bed, _endpoints) = Bed::web(&["127.0.0.2"]).await;
        let key = bed.serve(Protocol::Udp, spec("web")).await;
        let client = bed.datagrams(key).await;
        let own = vec![client.local_addr().unwrap()];
        bed.idle.forwarder.dialer.own_udp.set_listeners(own);
        client.send(b"x").await.unwrap();
        bed.wait_for(r#"load_balancer_datagrams_dropped_total{reason="source_address"} 1"#)
            .await;
        bed.idle.forwarder.dialer.own_udp.set_listeners(Vec::new());
        assert_eq!(bed.ask_until_answered(&client).await, "127.0.0.2");
    });
}
