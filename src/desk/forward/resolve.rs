//! Look-up of the targets: their namespace, their ports, and the way to them.

use std::rc::Rc;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::endpoints::{Endpoints, Source, TargetPort};
use super::spec::{LocalPort, PortSpec, RemotePort, TargetSpec};
use crate::desk::api::Api;
use crate::desk::targets::{Kind, LookupError, Object, Pods, Port, Protocol, Reference};
use crate::model::dns::is_label;
use crate::model::quote::GoQuoted;

/// Target that was found.
#[derive(Clone, Debug)]
pub struct Target {
    pub kind: Kind,
    pub name: String,
    pub namespace: String,
    pub ports: Vec<ResolvedPort>,
    /// Local addresses. `None` for those of the command.
    pub addresses: Option<Vec<String>>,
    /// Not used for a service or pod of a bastion.
    pub endpoints: Rc<Endpoints>,
}

/// Port of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedPort {
    /// Port to listen on, 0 for a free one.
    pub local: u16,
    /// Port of the service or the pod.
    pub remote: u16,
    /// Port of the pods.
    pub target: TargetPort,
    pub protocol: Protocol,
}

/// Reason why a target is not forwarded.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error("{target} has no port {}{ports}", GoQuoted(port))]
    Port {
        target: String,
        port: String,
        ports: String,
    },
    #[error(
        "port {port} of {target} is of protocol UDP; use {port}/udp, which needs a bastion \
         (--via=bastion)"
    )]
    Udp { target: String, port: String },
    #[error(
        "port {port} of {target} is a name, and the user may not read it; use its number, as in \
         [LOCAL:]NUMBER"
    )]
    PortName { target: String, port: String },
}

impl Target {
    /// Looks up a target. `namespace` is used if the argument has none. The target of a bastion may
    /// stay unknown, if the server offers no look-ups to the user.
    ///
    /// # Errors
    /// [`ResolveError`]
    pub async fn look_up(
        api: &Rc<Api>,
        spec: &TargetSpec,
        namespace: &str,
        is_bastion: bool,
    ) -> Result<Self, ResolveError> {
        let namespace = spec.namespace.as_deref().unwrap_or(namespace);
        let (name, namespace, object) = match find(api, spec, namespace).await {
            Ok((name, namespace, object)) => (name, namespace, Some(object)),
            Err(error)
                if is_bastion
                    && error.is_unavailable()
                    && matches!(spec.kind, Kind::Service | Kind::Pod) =>
            {
                (&*spec.name, namespace, None)
            }
            Err(error) => return Err(error.into()),
        };
        let text = format!("{}/{name}", spec.kind.singular());
        let ports = spec.ports.iter();
        let ports = ports.map(|port| resolve(&text, spec.kind, object.as_ref(), port));
        let ports = ports.collect::<Result<_, _>>()?;
        let pods = object.map_or(Pods::None, |object| object.pods);
        let source = match spec.kind {
            Kind::Service => Source::Service {
                name: name.to_owned(),
                labels: pods,
            },
            _ => Source::Pods(pods),
        };
        let endpoints = Endpoints::new(Rc::clone(api), namespace, source);
        Ok(Self {
            kind: spec.kind,
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            ports,
            addresses: spec.addresses.clone(),
            endpoints,
        })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.kind.singular(), self.name)
    }
}

/// Finds the object of a target. A name with dots that does not exist is `NAME.NAMESPACE`.
async fn find<'a>(
    api: &Api,
    spec: &'a TargetSpec,
    namespace: &'a str,
) -> Result<(&'a str, &'a str, Object), LookupError> {
    let look_up = async |name: &'a str, namespace: &'a str| {
        let reference = Reference {
            kind: spec.kind,
            name: name.to_owned(),
            port: None,
        };
        let object = Object::look_up(api, namespace, &reference).await?;
        Ok((name, namespace, object))
    };
    let error = match look_up(&spec.name, namespace).await {
        Err(error @ LookupError::NotFound { .. }) if spec.namespace.is_none() => error,
        result => return result,
    };
    match spec.name.rsplit_once('.') {
        Some((name, namespace)) if is_label(namespace) => look_up(name, namespace).await,
        _ => Err(error),
    }
}

/// Finds the numbers of a port by the rules of kubectl: the local port is that of the service, and a
/// service without a cluster IP has the port of its pods.
fn resolve(
    target: &str,
    kind: Kind,
    object: Option<&Object>,
    port: &PortSpec,
) -> Result<ResolvedPort, ResolveError> {
    let Some(object) = object else {
        let RemotePort::Number(number) = port.remote else {
            return Err(ResolveError::PortName {
                target: target.to_owned(),
                port: port.remote.to_string(),
            });
        };
        return Ok(resolved(
            port,
            number,
            pod_port(IntOrString::Int(number.into())),
        ));
    };
    let is_requested = |declared: &&Port| match &port.remote {
        RemotePort::Number(number) => declared.number == *number,
        RemotePort::Name(name) => declared.name == *name,
    };
    let ports = match port.protocol {
        Protocol::Tcp => &object.ports,
        Protocol::Udp => &object.udp_ports,
    };
    match ports.iter().find(is_requested) {
        Some(found) if kind == Kind::Service && !object.is_headless => {
            let target = TargetPort {
                slice_port: Some(found.name.clone()),
                port: found.target.clone(),
            };
            Ok(resolved(port, found.number, target))
        }
        Some(found) => {
            // The number of a named port may differ between pods, as during an update.
            let target = match &port.remote {
                RemotePort::Name(name)
                    if kind != Kind::Service && port.protocol == Protocol::Tcp =>
                {
                    IntOrString::String(name.clone())
                }
                _ => IntOrString::Int(found.number.into()),
            };
            Ok(resolved(port, found.number, pod_port(target)))
        }
        None if port.protocol == Protocol::Tcp
            && object.udp_ports.iter().any(|port| is_requested(&port)) =>
        {
            Err(ResolveError::Udp {
                target: target.to_owned(),
                port: port.remote.to_string(),
            })
        }
        None => match port.remote {
            RemotePort::Number(number) if object.has_other_ports => Ok(resolved(
                port,
                number,
                pod_port(IntOrString::Int(number.into())),
            )),
            _ => Err(ResolveError::Port {
                target: target.to_owned(),
                port: port.remote.to_string(),
                ports: list(ports, port.protocol),
            }),
        },
    }
}

fn resolved(port: &PortSpec, remote: u16, target: TargetPort) -> ResolvedPort {
    ResolvedPort {
        local: match port.local {
            LocalPort::Same => remote,
            LocalPort::Free => 0,
            LocalPort::Number(number) => number,
        },
        remote,
        target,
        protocol: port.protocol,
    }
}

fn pod_port(port: IntOrString) -> TargetPort {
    TargetPort {
        slice_port: None,
        port,
    }
}

fn list(ports: &[Port], protocol: Protocol) -> String {
    let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
    match (ports.len(), protocol) {
        (0, Protocol::Tcp) => "; it has no TCP ports".to_owned(),
        (0, Protocol::Udp) => "; it has no UDP ports".to_owned(),
        _ => format!("; its ports: {}", ports.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Pod, Service};
    use serde_json::{Value, json};

    use super::*;
    use crate::desk::forward::spec::parse_port;
    use crate::desk::targets::pods::container_port;

    /// Resolves ports against an object and a pod of it. Returns them as kubectl translates them.
    fn translate(
        kind: Kind,
        spec: &Value,
        pod: &Value,
        ports: &[&str],
    ) -> Result<Vec<String>, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "ports": pod}]},
        }))
        .unwrap();
        let reference: Reference = "svc/x".parse().unwrap();
        let object = match kind {
            Kind::Service => {
                let service: Service = serde_json::from_value(json!({"spec": spec})).unwrap();
                Object::of_service(service, &reference).unwrap()
            }
            _ => Object::of_pod(pod.spec.as_ref(), Pods::Named("p".into())),
        };
        let translated = ports.iter().map(|port| {
            let port = parse_port(port).map_err(|error| error.to_string())?;
            let resolved = resolve("x", kind, Some(&object), &port);
            let resolved = resolved.map_err(|error| error.to_string())?;
            let remote = container_port(&pod, &resolved.target.port);
            let remote = remote.map_err(|error| error.to_string())?;
            Ok(match resolved.local {
                0 => format!(":{remote}"),
                local if local == remote => remote.to_string(),
                local => format!("{local}:{remote}"),
            })
        });
        translated.collect()
    }

    /// Cases of `TestTranslateServicePortToTargetPort` of kubectl, with kubernetes/kubectl issues
    /// 752 and 947.
    #[test]
    fn ports_of_services_are_those_of_kubectl() {
        let number = json!({"ports": [{"port": 80, "targetPort": 8080}]});
        let same = json!({"ports": [{"port": 8080, "targetPort": 8080}]});
        let headless = json!({"clusterIP": "None", "ports": [{"port": 80, "targetPort": 8080}]});
        let named = json!({"ports": [
            {"port": 80, "targetPort": "http"}, {"port": 443, "targetPort": "https"},
        ]});
        let both_named = json!({"ports": [
            {"port": 80, "name": "http", "targetPort": 8080},
            {"port": 443, "name": "https", "targetPort": 8443},
        ]});
        let both = json!({"ports": [{"port": 80, "name": "http", "targetPort": "http"}]});
        let omitted = json!({"ports": [{"port": 80}]});
        let zero = json!({"ports": [{"port": 80, "targetPort": 0}]});
        let prometheus = json!({"ports": [{"port": 9090, "name": "web", "targetPort": "web"}]});
        let http = json!([
            {"name": "http", "containerPort": 8080}, {"name": "https", "containerPort": 8443},
            {"name": "web", "containerPort": 19090},
        ]);
        let cases: [(&Value, &[&str], &[&str]); 15] = [
            (&number, &["80"], &["80:8080"]),
            (&number, &[":80"], &[":8080"]),
            (&same, &["8000:8080"], &["8000:8080"]),
            (&headless, &["80"], &["80"]),
            (&headless, &[":80"], &[":80"]),
            (&named, &["80", "443"], &["80:8080", "443:8443"]),
            (&named, &[":80", ":443"], &[":8080", ":8443"]),
            (&both_named, &["http", "https"], &["80:8080", "443:8443"]),
            (&both_named, &[":http", ":https"], &[":8080", ":8443"]),
            (&both_named, &["8443:https"], &["8443"]),
            (&both, &["http"], &["80:8080"]),
            (&omitted, &["80"], &["80"]),
            (&omitted, &[":80"], &[":80"]),
            (&zero, &["80"], &["80"]),
            (&prometheus, &["web"], &["9090:19090"]),
        ];
        for (service, ports, expected) in cases {
            let translated = translate(Kind::Service, service, &http, ports);
            let expected: Vec<_> = expected.iter().map(ToString::to_string).collect();
            assert_eq!(translated, Ok(expected), "{service} {ports:?}");
        }
        let https = json!([{"name": "https", "containerPort": 443}]);
        for (service, pod, ports, message) in [
            (
                &named,
                &https,
                "80",
                "no container of the pod p has a port named http",
            ),
            (
                &both,
                &http,
                "https",
                r#"x has no port "https"; its ports: 80 (http)"#,
            ),
            (
                &both,
                &http,
                "443",
                r#"x has no port "443"; its ports: 80 (http)"#,
            ),
        ] {
            let error = translate(Kind::Service, service, pod, &[ports]).unwrap_err();
            assert_eq!(error, message);
        }
    }

    /// Cases of `TestConvertPodNamedPortToNumber` of kubectl.
    #[test]
    fn ports_of_pods_are_those_of_kubectl() {
        let pod = json!([{"name": "http", "containerPort": 80}]);
        for (port, expected) in [
            ("80", "80"),
            ("8000:80", "8000:80"),
            (":80", ":80"),
            ("http", "80"),
            ("8000:http", "8000:80"),
            (":http", ":80"),
            // Not declared.
            ("90", "90"),
        ] {
            let translated = translate(Kind::Pod, &Value::Null, &pod, &[port]);
            assert_eq!(translated, Ok(vec![expected.to_owned()]), "{port}");
        }
        for ports in [&["https"][..], &["https", "http"], &["28015:"]] {
            assert!(
                translate(Kind::Pod, &Value::Null, &pod, ports).is_err(),
                "{ports:?}"
            );
        }
    }

    /// Cases of `TestCheckUDPPort` of kubectl.
    #[test]
    fn ports_of_udp_are_found_by_their_protocol_only() {
        let udp = json!([{"protocol": "UDP", "containerPort": 53, "name": "dns"}]);
        let both = json!([
            {"protocol": "UDP", "containerPort": 53}, {"protocol": "TCP", "containerPort": 53},
        ]);
        let service = json!({"ports": [{"protocol": "UDP", "port": 53, "name": "dns"}]});
        let both_of_service = json!({"ports": [
            {"protocol": "TCP", "port": 53, "name": "a"}, {"protocol": "UDP", "port": 53, "name": "b"},
        ]});
        for port in ["53", "dns", "10053:dns"] {
            for (kind, spec) in [(Kind::Pod, &Value::Null), (Kind::Service, &service)] {
                let error = translate(kind, spec, &udp, &[port]).unwrap_err();
                assert!(error.contains("is of protocol UDP"), "{error}");
            }
        }
        for (kind, spec) in [(Kind::Pod, &Value::Null), (Kind::Service, &service)] {
            let ports = ["10053:53/udp", "53@UDP"];
            let translated = translate(kind, spec, &udp, &ports);
            assert_eq!(translated, Ok(vec!["10053:53".into(), "53".into()]));
        }
        let translated = translate(Kind::Pod, &Value::Null, &udp, &["10053:dns/udp"]);
        assert_eq!(translated, Ok(vec!["10053:53".into()]));
        let tcp = json!({"ports": [{"port": 53}]});
        let error = translate(Kind::Service, &tcp, &both, &["53/udp"]).unwrap_err();
        assert_eq!(error, r#"x has no port "53"; it has no UDP ports"#);
        for (kind, spec) in [(Kind::Pod, &Value::Null), (Kind::Service, &both_of_service)] {
            assert_eq!(
                translate(kind, spec, &both, &[":53"]),
                Ok(vec![":53".into()])
            );
        }
    }

    #[test]
    fn port_of_an_unknown_target_must_be_a_number() {
        let port = parse_port("8080:80").unwrap();
        let resolved = resolve("service/x", Kind::Service, None, &port).unwrap();
        assert_eq!((resolved.local, resolved.remote), (8080, 80));
        let port = parse_port("8080:http").unwrap();
        let error = resolve("service/x", Kind::Service, None, &port).unwrap_err();
        assert!(error.to_string().contains("use its number"), "{error}");
    }
}
