//! `kube-bastion forward` through a bastion: tunnels over HTTP/2.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::forward_api_server::objects;
use crate::forward_bastion::Bastion;
use crate::forward_program::{Forward, echo, expect_reset, fail, read_to_end, within};
use crate::support::eventually;

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_streams_of_one_connection_to_the_bastion() -> Result<()> {
    let bastion = Bastion::start(objects()).await?;
    let arguments = [
        "svc/web",
        ":echo",
        "pod/web-0",
        ":7",
        "svc/web.stage",
        ":80",
    ];
    let forward = Forward::start(&bastion.kubeconfig, 3, &arguments).await?;
    let mut streams = Vec::new();
    for port in 0..3 {
        let mut stream = forward.connect(port).await?;
        echo(&mut stream, "open").await?;
        streams.push(stream);
    }
    streams[0].write_all(b"last").await?;
    streams[0].shutdown().await?;
    ensure!(read_to_end(&mut streams[0]).await? == "last");
    echo(&mut streams[1], "still open").await?;
    ensure!(bastion.connections() == 1, "{}", bastion.connections());
    let expected = [
        "web.default.svc:80",
        "web-0.default.pod:7",
        "web.stage.svc:80",
    ];
    let expected = expected.map(|authority| (authority.to_owned(), "Bearer secret".to_owned()));
    ensure!(bastion.requests() == expected, "{:?}", bastion.requests());
    ensure!(
        forward.count("-> 80") >= 2,
        "{:?}",
        forward.program.output()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_waits_for_a_pod_that_is_replaced() -> Result<()> {
    let bastion = Bastion::start([]).await?;
    let forward = Forward::start(&bastion.kubeconfig, 1, &["pod/replaced", ":80"]).await?;
    for connections in [1, 4] {
        echo(&mut forward.connect(0).await?, "hello").await?;
        ensure!(
            bastion.requests().len() == connections,
            "{:?}",
            bastion.requests()
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn hundred_connections_transfer_at_once() -> Result<()> {
    const LENGTH: usize = 256 * 1024;
    let bastion = Bastion::start(objects()).await?;
    let forward = Forward::start(&bastion.kubeconfig, 1, &["svc/web", ":80"]).await?;
    let transfer = async |number: usize| -> Result<()> {
        let mut stream = forward.connect(0).await?;
        let sent: Vec<u8> = (0..LENGTH)
            .map(|at| (at * (number + 1)).to_le_bytes()[1])
            .collect();
        let (mut reader, mut writer) = stream.split();
        let mut received = vec![0; LENGTH];
        let (written, read) =
            tokio::join!(writer.write_all(&sent), reader.read_exact(&mut received));
        written?;
        read?;
        ensure!(received == sent, "connection {number} differs");
        Ok(())
    };
    let transfers = futures::future::try_join_all((0..100).map(transfer));
    within(transfers).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn resets_pass_in_both_directions_and_end_their_connection_only() -> Result<()> {
    let objects = objects().into_iter().chain([(
        "/api/v1/namespaces/default/services/reset".to_owned(),
        serde_json::json!({"spec": {"ports": [{"port": 80}]}}),
    )]);
    let bastion = Bastion::start(objects).await?;
    let arguments = ["svc/web", ":80", "svc/reset", ":80"];
    let forward = Forward::start(&bastion.kubeconfig, 2, &arguments).await?;
    let mut open = forward.connect(0).await?;
    echo(&mut open, "open").await?;
    let mut reset = forward.connect(1).await?;
    reset.write_all(b"x").await?;
    expect_reset(&mut reset).await?;
    let mut leaving = forward.connect(0).await?;
    echo(&mut leaving, "open").await?;
    leaving.set_zero_linger()?;
    drop(leaving);
    eventually(
        "the reset of the stream",
        async || Ok(bastion.resets() == 1),
    )
    .await?;
    echo(&mut open, "still open").await?;
    ensure!(bastion.connections() == 1, "{}", bastion.connections());
    Ok(())
}

/// Without look-ups, as for a user who may only open tunnels.
#[tokio::test(flavor = "multi_thread")]
async fn targets_with_numbers_need_no_look_up() -> Result<()> {
    let bastion = Bastion::start([]).await?;
    let forward = Forward::start(&bastion.kubeconfig, 1, &["svc/bye", ":80"]).await?;
    // kubernetes/kubernetes issue 8766.
    for _ in 0..20 {
        ensure!(read_to_end(&mut forward.connect(0).await?).await? == "bye");
    }
    let error = fail(&bastion.kubeconfig, &["svc/bye", "http"])?;
    ensure!(
        error.contains("port http of service/bye is a name"),
        "{error}"
    );
    let error = fail(&bastion.kubeconfig, &["deploy/bye", "80"])?;
    ensure!(error.contains("cannot read deployment/bye"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_are_opened_as_the_user_to_impersonate() -> Result<()> {
    let bastion = Bastion::start([]).await?;
    let arguments = ["svc/bye", ":80", "--as=jane"];
    let forward = Forward::start(&bastion.kubeconfig, 1, &arguments).await?;
    ensure!(read_to_end(&mut forward.connect(0).await?).await? == "bye");
    let request = (
        "bye.default.svc:80".to_owned(),
        "Bearer secret as jane".to_owned(),
    );
    ensure!(bastion.requests() == [request], "{:?}", bastion.requests());
    Ok(())
}

/// The replica behind all connections drains.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_accept_no_more_tunnels_are_replaced() -> Result<()> {
    const CONNECTIONS: usize = 5;
    let bastion = Bastion::start(objects()).await?;
    let forward = Forward::start(&bastion.kubeconfig, 1, &["svc/web", ":80"]).await?;
    let mut open = Vec::new();
    while bastion.connections() < CONNECTIONS {
        let mut stream = forward.connect(0).await?;
        echo(&mut stream, "before").await?;
        open.push(stream);
    }
    // One stays open on each connection.
    let (mut open, closed): (Vec<_>, Vec<_>) = open
        .into_iter()
        .enumerate()
        .partition(|(number, _)| number % 100 == 0);
    for (_, stream) in &closed {
        stream.set_zero_linger()?;
    }
    let count = closed.len();
    drop(closed);
    eventually("the end of the others", async || {
        Ok(bastion.resets() == count)
    })
    .await?;
    bastion.drain();
    echo(&mut forward.connect(0).await?, "after").await?;
    for (_, stream) in &mut open {
        echo(stream, "still open").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_connection_to_the_bastion_is_replaced() -> Result<()> {
    let bastion = Bastion::start(objects()).await?;
    let forward = Forward::start(&bastion.kubeconfig, 1, &["svc/web", ":80"]).await?;
    let mut lost = forward.connect(0).await?;
    echo(&mut lost, "open").await?;
    bastion.cut();
    expect_reset(&mut lost).await?;
    echo(&mut forward.connect(0).await?, "new").await?;
    // A client that arrives while the bastion restarts.
    bastion.set_down(true);
    bastion.cut();
    let mut waiting = forward.connect(0).await?;
    waiting.write_all(b"sent before").await?;
    eventually("the connection", async || {
        Ok(forward.count("Handling connection for") == 3)
    })
    .await?;
    bastion.set_down(false);
    let mut answer = [0; 11];
    waiting.read_exact(&mut answer).await?;
    ensure!(&answer == b"sent before", "{answer:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_waits_for_an_endpoint() -> Result<()> {
    let bastion = Bastion::start([]).await?;
    let forward = Forward::start(&bastion.kubeconfig, 1, &["svc/starting", ":80"]).await?;
    echo(&mut forward.connect(0).await?, "served").await?;
    ensure!(bastion.requests().len() == 3, "{:?}", bastion.requests());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_printed_once_with_the_remedy() -> Result<()> {
    let bastion = Bastion::start([]).await?;
    let arguments = [
        "svc/forbidden",
        ":80",
        "svc/closed",
        ":80",
        "svc/missing",
        ":80",
    ];
    let forward = Forward::start(&bastion.kubeconfig, 3, &arguments).await?;
    for port in 0..3 {
        for _ in 0..3 {
            forward.expect_refusal(port).await?;
        }
    }
    for message in [
        "service/forbidden: jane may not create services/portforward (status 403); \
         permission to create pods/portforward in the namespace is also sufficient",
        "service/closed: connection refused (status 502); what a pod binds to its own loopback \
         address cannot be reached through a bastion: use --via=api-server for it",
        "service/missing: no service missing; did you mean web? (status 404)",
    ] {
        forward.expect_count(message, 1).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_a_workload_are_used_in_turn() -> Result<()> {
    let bastion = Bastion::start(objects()).await?;
    let forward = Forward::start(&bastion.kubeconfig, 1, &["deploy/web", ":echo"]).await?;
    for _ in 0..4 {
        echo(&mut forward.connect(0).await?, "open").await?;
    }
    let mut authorities: Vec<_> = bastion.requests().into_iter().map(|(it, _)| it).collect();
    authorities.sort();
    let expected = ["web-0.default.pod:7", "web-1.default.pod:7"];
    ensure!(
        authorities == [expected[0], expected[0], expected[1], expected[1]],
        "{authorities:?}"
    );
    // Without the API, those of the last list, which is used again for 2 s.
    bastion.set_api_down(true);
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(2100)).await;
        echo(&mut forward.connect(0).await?, "open").await?;
    }
    Ok(())
}

/// kubernetes/kubernetes issue 78446.
#[tokio::test(flavor = "multi_thread")]
async fn canceled_connections_leave_room_for_others() -> Result<()> {
    let bastion = Bastion::start(objects()).await?;
    let forward = Forward::start(&bastion.kubeconfig, 1, &["svc/web", ":80"]).await?;
    let canceled = (0..300).map(async |number| -> Result<()> {
        let mut stream = forward.connect(0).await?;
        stream.write_all(b"not read").await?;
        if number % 2 == 0 {
            stream.set_zero_linger()?;
        }
        Ok(())
    });
    for result in futures::future::join_all(canceled).await {
        result?;
    }
    let mut streams = Vec::new();
    for _ in 0..100 {
        let mut stream = forward.connect(0).await?;
        echo(&mut stream, "later").await?;
        streams.push(stream);
    }
    Ok(())
}

/// Each client has a descriptor; without a free one, new clients wait.
#[tokio::test(flavor = "multi_thread")]
async fn missing_descriptors_end_neither_the_command_nor_its_connections() -> Result<()> {
    let bastion = Bastion::start(objects()).await?;
    let mut forward =
        Forward::start_with_few_files(&bastion.kubeconfig, &["svc/web", ":80"]).await?;
    let mut streams = forward.use_up_files().await?;
    echo(&mut streams[0], "still open").await?;
    let mut last = streams.pop().expect("there are 60");
    streams.clear();
    echo(&mut last, "served later").await
}
