//! Workloads, and the goals of the project for them.

/// One workload, which every peer gets in every round.
#[derive(Debug)]
pub struct Workload {
    pub title: &'static str,
    pub measure: Measure,
    pub goal: Goal,
    /// kube-apiserver is a peer, too.
    pub with_apiserver: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// CPU time per small request in a closed loop.
    Small {
        version: Version,
        connections: u32,
        streams: u32,
    },
    /// CPU time per request with a large body.
    Body(Direction),
    /// CPU time per connection with one small request.
    Handshake { resumed: bool },
    /// Latency of small requests at a fixed rate.
    Latency(Version),
    /// Resident memory per open connection.
    Memory(Held),
    /// Growth of the resident memory by UDP flows that have expired.
    ExpiredFlows,
    /// CPU time per small request that passes to the API server, in a closed loop.
    PassThrough {
        version: Version,
        connections: u32,
        streams: u32,
    },
    /// CPU time per small request of bastions with indexes of different sizes.
    Index(Growth),
    /// CPU time of a load balancer for TCP and UDP.
    L4(L4),
}

impl Measure {
    pub fn is_memory(self) -> bool {
        matches!(self, Self::Memory(_) | Self::ExpiredFlows)
    }

    /// Name and unit of the figure.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Small { .. } | Self::PassThrough { .. } | Self::Body(_) | Self::Index(_) => {
                "CPU µs/request"
            }
            Self::Handshake { .. } | Self::L4(L4::Connection) => "CPU µs/connection",
            Self::L4(L4::Transfer) => "CPU µs/10 MiB",
            Self::L4(L4::Datagram) => "CPU µs/datagram and answer",
            Self::L4(L4::Tunnels(_)) => "µs/10 MiB",
            Self::Memory(Held::Tunnel(_)) => "KiB/tunnel",
            Self::ExpiredFlows => "KiB/flow",
            Self::Latency(_) => "p99 µs",
            Self::Memory(_) => "KiB/connection",
        }
    }

    /// Name of the peer with which the others are compared.
    pub fn reference(self) -> &'static str {
        match self {
            Self::Index(_) => SMALL_INDEX,
            // HAProxy has no UDP.
            Self::L4(L4::Datagram) => NGINX,
            Self::L4(L4::Tunnels(_)) => RELAY,
            _ => HAPROXY,
        }
    }

    /// Name of the peer to which the goal applies.
    pub fn subject(self) -> &'static str {
        match self {
            Self::Index(Growth::Services) => MANY_SERVICES,
            Self::Index(Growth::Endpoints) => MANY_ENDPOINTS,
            _ => BASTION,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http1,
    Http2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Download,
    Upload,
}

/// State in which a connection is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// One request was answered.
    Idle,
    /// The client has stopped to read a large response.
    Stalled,
    /// Tunnel by CONNECT without traffic.
    Tunnel(Version),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    Services,
    Endpoints,
}

/// Unit of what a load balancer passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L4 {
    /// 10 MiB on an open connection.
    Transfer,
    /// Connection with a small request.
    Connection,
    Datagram,
    /// As [`Self::Transfer`], on 100 tunnels: of one HTTP/2 connection, or over HTTP/1.1, which is
    /// a TLS connection for each.
    Tunnels(Version),
}

/// Upper limit for the subject of a workload.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// Ratio to the reference.
    Ratio(f64),
    /// The figure itself.
    Figure(f64),
}

pub const BASTION: &str = "kube-bastion";
pub const BASELINE: &str = "baseline";
pub const HAPROXY: &str = "HAProxy";
pub const HAPROXY_TCP: &str = "HAProxy (TCP)";
pub const NGINX: &str = "nginx";
/// The bastion's relay of TCP, as a load balancer.
pub const RELAY: &str = "TCP relay";
pub const ENVOY: &str = "Envoy";
pub const APISERVER: &str = "kube-apiserver";
pub const SMALL_INDEX: &str = "10 services x 3";
pub const MANY_SERVICES: &str = "10,000 services x 3";
pub const MANY_ENDPOINTS: &str = "10 services, 5,000";

/// Minimum ratio of the CPU time of kube-apiserver to that of the bastion, in the first workload
/// with both.
pub const APISERVER_GOAL: f64 = 25.0;

pub const WORKLOADS: [Workload; 23] = [
    Workload {
        title: "HTTP/1.1 small, 64 connections",
        measure: Measure::Small {
            version: Version::Http1,
            connections: 64,
            streams: 1,
        },
        goal: Goal::Ratio(0.80),
        with_apiserver: true,
    },
    Workload {
        title: "HTTP/2 small, 16 connections x 16 streams",
        measure: Measure::Small {
            version: Version::Http2,
            connections: 16,
            streams: 16,
        },
        goal: Goal::Ratio(0.85),
        with_apiserver: true,
    },
    Workload {
        title: "HTTP/2 small, 64 connections x 1 stream",
        measure: Measure::Small {
            version: Version::Http2,
            connections: 64,
            streams: 1,
        },
        goal: Goal::Ratio(0.85),
        with_apiserver: false,
    },
    Workload {
        title: "HTTP/1.1 download of 10 MiB",
        measure: Measure::Body(Direction::Download),
        goal: Goal::Ratio(0.50),
        with_apiserver: false,
    },
    Workload {
        title: "HTTP/1.1 upload of 10 MiB",
        measure: Measure::Body(Direction::Upload),
        goal: Goal::Ratio(0.50),
        with_apiserver: false,
    },
    Workload {
        title: "full TLS handshake",
        measure: Measure::Handshake { resumed: false },
        goal: Goal::Ratio(0.80),
        with_apiserver: false,
    },
    Workload {
        title: "resumed TLS handshake",
        measure: Measure::Handshake { resumed: true },
        goal: Goal::Ratio(0.60),
        with_apiserver: false,
    },
    Workload {
        title: "HTTP/1.1 latency at 4,000 requests/s",
        measure: Measure::Latency(Version::Http1),
        goal: Goal::Ratio(1.0),
        with_apiserver: false,
    },
    Workload {
        title: "HTTP/2 latency at 4,000 requests/s",
        measure: Measure::Latency(Version::Http2),
        goal: Goal::Ratio(1.0),
        with_apiserver: false,
    },
    Workload {
        title: "memory of an idle TLS connection",
        measure: Measure::Memory(Held::Idle),
        goal: Goal::Ratio(1.0),
        with_apiserver: false,
    },
    Workload {
        title: "memory of a stalled download",
        measure: Measure::Memory(Held::Stalled),
        goal: Goal::Figure(256.0),
        with_apiserver: false,
    },
    Workload {
        title: "pass-through to the API server, HTTP/1.1",
        measure: Measure::PassThrough {
            version: Version::Http1,
            connections: 16,
            streams: 1,
        },
        goal: Goal::Ratio(1.0),
        with_apiserver: false,
    },
    Workload {
        title: "pass-through to the API server, HTTP/2",
        measure: Measure::PassThrough {
            version: Version::Http2,
            connections: 4,
            streams: 8,
        },
        goal: Goal::Ratio(1.0),
        with_apiserver: false,
    },
    Workload {
        title: "index of 10,000 services",
        measure: Measure::Index(Growth::Services),
        goal: Goal::Ratio(1.05),
        with_apiserver: false,
    },
    Workload {
        title: "index of 5,000 endpoints",
        measure: Measure::Index(Growth::Endpoints),
        goal: Goal::Ratio(1.05),
        with_apiserver: false,
    },
    Workload {
        title: "L4: TCP transfer of 10 MiB",
        measure: Measure::L4(L4::Transfer),
        goal: Goal::Ratio(1.0),
        with_apiserver: false,
    },
    Workload {
        title: "L4: new TCP connection",
        measure: Measure::L4(L4::Connection),
        goal: Goal::Ratio(1.0),
        with_apiserver: false,
    },
    Workload {
        title: "L4: UDP datagram and its answer",
        measure: Measure::L4(L4::Datagram),
        goal: Goal::Ratio(1.0),
        with_apiserver: false,
    },
    Workload {
        title: "L4: 10 MiB by CONNECT, 1 connection x 100 streams",
        measure: Measure::L4(L4::Tunnels(Version::Http2)),
        // 0.8 of the throughput.
        goal: Goal::Ratio(1.25),
        with_apiserver: false,
    },
    Workload {
        title: "L4: 10 MiB by CONNECT, 100 connections of HTTP/1.1",
        measure: Measure::L4(L4::Tunnels(Version::Http1)),
        goal: Goal::Ratio(1.25),
        with_apiserver: false,
    },
    Workload {
        title: "L4: memory of an idle tunnel, HTTP/1.1",
        measure: Measure::Memory(Held::Tunnel(Version::Http1)),
        goal: Goal::Figure(20.0),
        with_apiserver: false,
    },
    Workload {
        title: "L4: memory of an idle tunnel, HTTP/2",
        measure: Measure::Memory(Held::Tunnel(Version::Http2)),
        goal: Goal::Figure(20.0),
        with_apiserver: false,
    },
    Workload {
        title: "L4: growth by 10,000 expired UDP flows",
        measure: Measure::ExpiredFlows,
        // 1 MiB in total, as much as allocators keep.
        goal: Goal::Figure(0.1),
        with_apiserver: false,
    },
];
