//! Choice of the port of a target.

use std::fmt;

use k8s_openapi::api::core::v1::{PodSpec, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::model::Scheme;
use crate::model::quote::GoQuoted;

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// Returns true if the field `protocol` of a port names this one. TCP is the default.
    pub fn is_of(self, field: Option<&str>) -> bool {
        match self {
            Self::Tcp => matches!(field, None | Some("" | "TCP")),
            Self::Udp => field == Some("UDP"),
        }
    }
}

/// Port that an object declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub number: u16,
    /// Empty without a name.
    pub name: String,
    pub app_protocol: Option<String>,
    /// The object has no other port, and none was requested.
    pub is_implied: bool,
    /// Port of the pods: a number, or the name of a port of a container.
    pub target: IntOrString,
}

/// Reason why no port was chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    #[error("has no TCP port")]
    None,
    #[error("has several ports; choose one with --port: {}", list(.0))]
    Several(Vec<Port>),
    #[error("has no port {}; its ports: {}", GoQuoted(port), list(ports))]
    Unknown { port: String, ports: Vec<Port> },
}

fn list(ports: &[Port]) -> String {
    let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
    ports.join(", ")
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number)?;
        match &*self.name {
            "" => Ok(()),
            name => write!(f, " ({name})"),
        }
    }
}

impl Port {
    /// Returns a port of which only the number is known.
    pub fn new(number: u16) -> Self {
        Self {
            number,
            name: String::new(),
            app_protocol: None,
            is_implied: false,
            target: IntOrString::Int(number.into()),
        }
    }

    /// Returns the scheme of the port: HTTPS if its app protocol or, without one, its name says so.
    pub fn scheme(&self) -> Scheme {
        let is_https = match &self.app_protocol {
            Some(protocol) => matches!(&**protocol, "https" | "HTTPS" | "kubernetes.io/wss"),
            None => has_protocol(&self.name, "https"),
        };
        if is_https {
            Scheme::Https
        } else {
            Scheme::Http
        }
    }

    /// Returns true if the port says that it serves HTTP without TLS.
    fn is_http(&self) -> bool {
        match &self.app_protocol {
            Some(protocol) => matches!(
                &**protocol,
                "http" | "HTTP" | "kubernetes.io/ws" | "kubernetes.io/h2c"
            ),
            None => ["http", "web", "www", "ui"]
                .iter()
                .any(|protocol| has_protocol(&self.name, protocol)),
        }
    }
}

/// Returns true for the name of a protocol, and for one that it begins: `http-admin`.
fn has_protocol(name: &str, protocol: &str) -> bool {
    name.strip_prefix(protocol)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// Returns the ports of a service.
pub fn of_service(spec: &ServiceSpec, protocol: Protocol) -> Vec<Port> {
    let ports = spec.ports.iter().flatten();
    let ports = ports.filter(|port| protocol.is_of(port.protocol.as_deref()));
    ports
        .filter_map(|port| {
            let number = u16::try_from(port.port).ok()?;
            Some(Port {
                number,
                name: port.name.clone().unwrap_or_default(),
                app_protocol: port.app_protocol.clone(),
                is_implied: false,
                target: port
                    .target_port
                    .clone()
                    // Older API servers leave an omitted one at 0.
                    .filter(|target| *target != IntOrString::Int(0))
                    .unwrap_or(IntOrString::Int(port.port)),
            })
        })
        .collect()
}

/// Returns the ports of the containers of a pod, those of sidecars included.
pub fn of_pod(spec: &PodSpec, protocol: Protocol) -> Vec<Port> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|it| it.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars);
    let ports = ports.flat_map(|container| container.ports.iter().flatten());
    let ports = ports.filter(|port| protocol.is_of(port.protocol.as_deref()));
    ports
        .filter_map(|port| {
            let number = u16::try_from(port.container_port).ok()?;
            Some(Port {
                number,
                name: port.name.clone().unwrap_or_default(),
                app_protocol: None,
                is_implied: false,
                target: IntOrString::Int(port.container_port),
            })
        })
        .collect()
}

/// Chooses a port: the `requested` one, by number or name; else the only one; else the only one that
/// says that it serves HTTP. With `any`, a number need not be declared, as for the containers of a
/// pod.
///
/// # Errors
/// [`PortError`] with the ports to choose from.
pub fn choose(ports: &[Port], requested: Option<&str>, any: bool) -> Result<Port, PortError> {
    if let Some(requested) = requested {
        let number = requested.parse::<u16>().ok().filter(|number| *number > 0);
        let found = ports.iter().find(|port| match number {
            Some(number) => port.number == number,
            None => port.name == requested,
        });
        let undeclared = || number.filter(|_| any).map(Port::new);
        return found
            .cloned()
            .or_else(undeclared)
            .ok_or_else(|| match ports {
                [] => PortError::None,
                ports => PortError::Unknown {
                    port: requested.to_owned(),
                    ports: ports.to_vec(),
                },
            });
    }
    match ports {
        [] => Err(PortError::None),
        [only] => Ok(Port {
            is_implied: true,
            ..only.clone()
        }),
        several => {
            let mut http = several.iter().filter(|port| port.is_http());
            match (http.next(), http.next()) {
                (Some(only), None) => Ok(only.clone()),
                _ => Err(PortError::Several(several.to_vec())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(number: u16, name: &str, app_protocol: Option<&str>) -> Port {
        Port {
            number,
            name: name.to_owned(),
            app_protocol: app_protocol.map(str::to_owned),
            ..Port::new(number)
        }
    }

    #[test]
    fn chooses_the_requested_port_else_the_only_one_else_the_only_http() {
        let one = [port(8080, "", None)];
        let web = [port(9090, "metrics", None), port(8080, "web", None)];
        let tls = [port(443, "https", None), port(80, "http", None)];
        let declared = [port(1, "a", Some("http")), port(2, "http", Some("kafka"))];
        let cases: [(&[Port], Option<&str>, u16); 9] = [
            (&one, None, 8080),
            (&one, Some("8080"), 8080),
            (&web, None, 8080),
            (&web, Some("metrics"), 9090),
            (&web, Some("9090"), 9090),
            (&tls, None, 80),
            (&tls, Some("https"), 443),
            (&declared, None, 1),
            (&declared, Some("http"), 2),
        ];
        for (ports, requested, expected) in cases {
            let chosen = choose(ports, requested, false).unwrap();
            assert_eq!(chosen.number, expected, "{requested:?}");
        }
        assert_eq!(choose(&one, Some("9000"), true).unwrap().number, 9000);
    }

    #[test]
    fn lists_the_ports_if_none_is_chosen() {
        let ports = [port(5672, "amqp", None), port(15672, "", None)];
        let error =
            |ports: &[Port], requested| choose(ports, requested, false).unwrap_err().to_string();
        assert_eq!(
            error(&ports, None),
            "has several ports; choose one with --port: 5672 (amqp), 15672"
        );
        assert_eq!(
            error(&ports, Some("http")),
            r#"has no port "http"; its ports: 5672 (amqp), 15672"#
        );
        assert_eq!(
            error(&ports, Some("0")),
            r#"has no port "0"; its ports: 5672 (amqp), 15672"#
        );
        assert_eq!(error(&[], None), "has no TCP port");
        let two = [port(1, "http-a", None), port(2, "http-b", None)];
        assert!(choose(&two, None, false).is_err());
    }

    #[test]
    fn scheme_follows_app_protocol_then_name() {
        for (name, app_protocol, scheme) in [
            ("https", None, Scheme::Https),
            ("https-web", None, Scheme::Https),
            ("httpsx", None, Scheme::Http),
            ("http", None, Scheme::Http),
            ("https", Some("http"), Scheme::Http),
            ("web", Some("https"), Scheme::Https),
        ] {
            assert_eq!(
                port(1, name, app_protocol).scheme(),
                scheme,
                "{name} {app_protocol:?}"
            );
        }
    }

    #[test]
    fn reads_tcp_ports_of_services_and_pods() {
        let service: ServiceSpec = serde_json::from_value(serde_json::json!({"ports": [
            {"port": 80, "targetPort": "web", "name": "http"},
            {"port": 53, "protocol": "UDP"},
            {"port": 81, "appProtocol": "https"},
        ]}))
        .unwrap();
        let ports = of_service(&service, Protocol::Tcp);
        let targets: Vec<_> = ports
            .iter()
            .map(|port| (port.number, port.target.clone()))
            .collect();
        assert_eq!(
            targets,
            [
                (80, IntOrString::String("web".into())),
                (81, IntOrString::Int(81))
            ]
        );
        assert_eq!(of_service(&service, Protocol::Udp)[0].number, 53);
        let pod: PodSpec = serde_json::from_value(serde_json::json!({
            "containers": [{"name": "a", "ports": [{"containerPort": 8080, "name": "web"}]}],
            "initContainers": [
                {"name": "b", "ports": [{"containerPort": 1}]},
                {"name": "c", "restartPolicy": "Always", "ports": [{"containerPort": 2}]},
            ],
        }))
        .unwrap();
        let numbers: Vec<_> = of_pod(&pod, Protocol::Tcp)
            .iter()
            .map(|port| port.number)
            .collect();
        assert_eq!(numbers, [8080, 2]);
    }
}
