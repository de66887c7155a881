//! Arguments: targets, each followed by its ports.
//!
//! ```text
//!   TARGET  = [TYPE/]NAME | svc/NAME.NAMESPACE
//!   PORT    = [[LOCAL]:]REMOTE[/PROTOCOL]
//! ```
//!
//! The first argument is a target, with the type `pod` if it has none, as for kubectl. Of the others,
//! those with `TYPE/` are targets, and the rest are ports of the target before them.

use std::fmt;
use std::str::FromStr;

use crate::desk::targets::{Kind, Protocol, Reference, ReferenceError};
use crate::model::dns::is_label;
use crate::model::quote::GoQuoted;

/// Target with its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetSpec {
    pub kind: Kind,
    /// Name as in the argument. Except for services, it may end with `.NAMESPACE`.
    pub name: String,
    /// `None` for that of the command.
    pub namespace: Option<String>,
    /// At least one.
    pub ports: Vec<PortSpec>,
    /// Local addresses. `None` for those of the command.
    pub addresses: Option<Vec<String>>,
}

/// Port to forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    pub local: LocalPort,
    pub remote: RemotePort,
    pub protocol: Protocol,
}

/// Port to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalPort {
    /// The number of the remote port.
    Same,
    /// Any free one.
    Free,
    Number(u16),
}

/// Port of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemotePort {
    /// Not 0.
    Number(u16),
    Name(String),
}

/// Reason why the arguments are invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error(
        "{} is a port; name its target before it, such as svc/web {port}",
        GoQuoted(port)
    )]
    NoTarget { port: String },
    #[error("{0} has no port; append [LOCAL:]REMOTE, such as {0} 8080:80")]
    NoPort(String),
    #[error("write the port of {target} as an argument of its own: {target} {port}")]
    PortInTarget { target: String, port: String },
    #[error("a node has no port to forward; forward a port of one of its pods")]
    Node,
    #[error(
        "{} is not the name of a service; use svc/NAME or svc/NAME.NAMESPACE",
        GoQuoted(.0)
    )]
    ServiceName(String),
    #[error("port {} {source}", GoQuoted(port))]
    Port { port: String, source: PortError },
}

/// Reason why a port is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    #[error("has too many parts; use [LOCAL:]REMOTE")]
    Parts,
    #[error("has no remote port; use [LOCAL:]REMOTE")]
    NoRemote,
    #[error("has a remote port that is neither a number from 1 to 65535 nor a name")]
    Remote,
    #[error("has a local port that is not a number from 0 to 65535")]
    Local,
    #[error("has an unknown protocol; use tcp or udp")]
    Protocol,
}

impl fmt::Display for RemotePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl TargetSpec {
    /// Parses the arguments of the command.
    ///
    /// # Errors
    /// [`SpecError`]
    pub fn parse_all(arguments: &[String]) -> Result<Vec<Self>, SpecError> {
        let mut targets = Vec::<Self>::new();
        for argument in arguments {
            if targets.is_empty() || is_target(argument) {
                let target = Self::parse(argument)?;
                check_ports(targets.last())?;
                targets.push(target);
            } else if let Some(target) = targets.last_mut() {
                target.ports.push(parse_port(argument)?);
            }
        }
        check_ports(targets.last())?;
        Ok(targets)
    }

    /// Parses a target without its ports.
    ///
    /// # Errors
    /// [`SpecError`]
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        let reference = match text.contains('/') {
            true => Reference::from_str(text)?,
            false if text.contains(':') => {
                let port = text.to_owned();
                return Err(SpecError::NoTarget { port });
            }
            false => Reference::from_str(&format!("pod/{text}"))?,
        };
        if let Some(port) = reference.port {
            let target = text.split(':').next().unwrap_or_default().to_owned();
            return Err(SpecError::PortInTarget { target, port });
        }
        let (name, namespace) = match reference.kind {
            Kind::Node => return Err(SpecError::Node),
            // Their names have no dots.
            Kind::Service => match reference.name.split_once('.') {
                Some((name, namespace)) => (name.to_owned(), Some(namespace.to_owned())),
                None => (reference.name, None),
            },
            _ => (reference.name, None),
        };
        let is_service_name = || namespace.as_deref().is_none_or(is_label) && is_label(&name);
        if reference.kind == Kind::Service && !is_service_name() {
            return Err(SpecError::ServiceName(text.to_owned()));
        }
        Ok(Self {
            kind: reference.kind,
            name,
            namespace,
            ports: Vec::new(),
            addresses: None,
        })
    }
}

impl fmt::Display for TargetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.singular(), self.name)?;
        match &self.namespace {
            Some(namespace) => write!(f, ".{namespace}"),
            None => Ok(()),
        }
    }
}

/// Returns the error for a target without ports.
fn check_ports(target: Option<&TargetSpec>) -> Result<(), SpecError> {
    match target {
        Some(target) if target.ports.is_empty() => Err(SpecError::NoPort(target.to_string())),
        _ => Ok(()),
    }
}

/// Returns true for an argument with a type. `53/udp` is a port.
fn is_target(argument: &str) -> bool {
    argument.split_once('/').is_some_and(|(kind, rest)| {
        let is_protocol = matches!(&*rest.to_ascii_lowercase(), "tcp" | "udp");
        !is_protocol || Kind::parse(kind).is_some()
    })
}

/// Parses `[[LOCAL]:]REMOTE`, followed by `/PROTOCOL` or `@PROTOCOL`.
///
/// # Errors
/// [`SpecError::Port`]
pub fn parse_port(text: &str) -> Result<PortSpec, SpecError> {
    let parsed = match text.split_once(['/', '@']) {
        Some((ports, protocol)) => parse_protocol(protocol).and_then(|it| parse_ports(ports, it)),
        None => parse_ports(text, Protocol::Tcp),
    };
    parsed.map_err(|source| SpecError::Port {
        port: text.to_owned(),
        source,
    })
}

fn parse_protocol(text: &str) -> Result<Protocol, PortError> {
    match &*text.to_ascii_lowercase() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err(PortError::Protocol),
    }
}

fn parse_ports(text: &str, protocol: Protocol) -> Result<PortSpec, PortError> {
    let (local, remote) = match text.split_once(':') {
        Some((_, remote)) if remote.contains(':') => return Err(PortError::Parts),
        Some(("", remote)) => (LocalPort::Free, remote),
        Some((local, remote)) => match local.parse() {
            Ok(0) => (LocalPort::Free, remote),
            Ok(number) => (LocalPort::Number(number), remote),
            Err(_) => return Err(PortError::Local),
        },
        None => (LocalPort::Same, text),
    };
    let remote = match remote {
        "" => return Err(PortError::NoRemote),
        _ if remote.bytes().all(|byte| byte.is_ascii_digit()) => match remote.parse() {
            Ok(number) if number > 0 => RemotePort::Number(number),
            _ => return Err(PortError::Remote),
        },
        name if is_label(name) => RemotePort::Name(name.to_owned()),
        _ => return Err(PortError::Remote),
    };
    Ok(PortSpec {
        local,
        remote,
        protocol,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Vec<String>, String> {
        let arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
        let parsed = TargetSpec::parse_all(&arguments).map_err(|error| error.to_string())?;
        let describe = |target: &TargetSpec| {
            let ports = target.ports.iter().map(|port| {
                let local = match port.local {
                    LocalPort::Same => "same".to_owned(),
                    LocalPort::Free => "free".to_owned(),
                    LocalPort::Number(number) => number.to_string(),
                };
                let protocol = match port.protocol {
                    Protocol::Tcp => "",
                    Protocol::Udp => "/udp",
                };
                format!(" {local}:{}{protocol}", port.remote)
            });
            format!("{target}{}", ports.collect::<String>())
        };
        Ok(parsed.iter().map(describe).collect())
    }

    #[test]
    fn accepts_the_forms_of_kubectl_port_forward() {
        for (arguments, expected) in [
            (
                &["mypod", "5000", "6000"][..],
                "pod/mypod same:5000 same:6000",
            ),
            (&["pod/mypod", "8888:5000"], "pod/mypod 8888:5000"),
            (&["pod/mypod", ":5000"], "pod/mypod free:5000"),
            (&["pod/mypod", "0:5000"], "pod/mypod free:5000"),
            (&["deployment/my", "5000"], "deployment/my same:5000"),
            (&["service/my", "8443:https"], "service/my 8443:https"),
            (&["service/my", "https"], "service/my same:https"),
            (&["svc/my", ":http"], "service/my free:http"),
            (&["sts/a", "1"], "statefulset/a same:1"),
            (&["rs/a", "1"], "replicaset/a same:1"),
            (&["ds/a", "1"], "daemonset/a same:1"),
            (&["job/a", "1"], "job/a same:1"),
            (&["rc/a", "1"], "replicationcontroller/a same:1"),
            // The name of a static pod.
            (
                &["etcd-node.example", "2379"],
                "pod/etcd-node.example same:2379",
            ),
        ] {
            assert_eq!(
                parse(arguments),
                Ok(vec![expected.to_owned()]),
                "{arguments:?}"
            );
        }
    }

    #[test]
    fn accepts_several_targets_namespaces_and_protocols() {
        let expected = [
            "service/db.shop same:5432",
            "pod/web-0 8080:80 free:http",
            "service/dns 5353:53/udp same:dns/udp same:53",
        ];
        let arguments =
            "svc/db.shop 5432 po/web-0 8080:80 :http svc/dns 5353:53/udp dns@UDP 53/tcp";
        let arguments: Vec<_> = arguments.split(' ').collect();
        assert_eq!(parse(&arguments), Ok(expected.map(str::to_owned).to_vec()));
        // A service whose name is that of a protocol.
        assert_eq!(
            parse(&["svc/a", "1", "svc/udp", "2"]),
            Ok(vec!["service/a same:1".into(), "service/udp same:2".into()])
        );
    }

    #[test]
    fn rejects_other_arguments_with_the_accepted_form() {
        for (arguments, message) in [
            (
                &["svc/web"][..],
                "service/web has no port; append [LOCAL:]REMOTE",
            ),
            (&["svc/web", "pod/x", "80"], "service/web has no port"),
            (
                &["8080:80"],
                r#""8080:80" is a port; name its target before it, such as svc/web 8080:80"#,
            ),
            (
                &["svc/web:80"],
                "write the port of svc/web as an argument of its own: svc/web 80",
            ),
            (
                &["svc/a.b.c", "80"],
                r#""svc/a.b.c" is not the name of a service"#,
            ),
            (&["svc/A", "80"], r#""svc/A" is not the name of a service"#),
            (&["node/n", "80"], "a node has no port to forward"),
            (&["servcie/a", "80"], "similar: service"),
            (&["svc/a", "servcie/b", "80"], "similar: service"),
            (&["p", "1:2:3"], r#"port "1:2:3" has too many parts"#),
            (&["p", "28015:"], r#"port "28015:" has no remote port"#),
            (&["p", ""], r#"port "" has no remote port"#),
            (&["p", "0"], "neither a number from 1 to 65535 nor a name"),
            (
                &["p", "65536"],
                "neither a number from 1 to 65535 nor a name",
            ),
            (
                &["p", "8080:-1"],
                "neither a number from 1 to 65535 nor a name",
            ),
            (
                &["p", "HTTP"],
                "neither a number from 1 to 65535 nor a name",
            ),
            (&["p", "http:80"], "a local port that is not a number"),
            (&["p", "70000:80"], "a local port that is not a number"),
            (&["p", "80@sctp"], "unknown protocol; use tcp or udp"),
        ] {
            let error = parse(arguments).unwrap_err();
            assert!(error.contains(message), "{arguments:?}: {error}");
            assert_eq!(error.lines().count(), 1);
        }
    }
}
