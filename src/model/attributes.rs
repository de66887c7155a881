//! What is asked of the authorizer: verb, resource, namespace and name (CONFORMANCE C15 to C19).

use std::fmt;

use http::Method;

use super::Target;

/// The resources that have a `/proxy/`. Their API group is core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    Nodes,
    Pods,
    Services,
}

impl Resource {
    pub const ALL: [Self; 3] = [Self::Nodes, Self::Pods, Self::Services];

    /// The plural of the API, as it stands in paths and in RBAC rules.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Pods => "pods",
            Self::Services => "services",
        }
    }

    /// The singular, for messages.
    pub fn singular(self) -> &'static str {
        match self {
            Self::Nodes => "node",
            Self::Pods => "pod",
            Self::Services => "service",
        }
    }

    pub fn is_namespaced(self) -> bool {
        self != Self::Nodes
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.plural())
    }
}

/// An RBAC verb. [`Verb::None`] is the empty verb, which only a rule with `*` grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    Get,
    List,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
    /// To act as somebody else.
    Impersonate,
    None,
}

impl Verb {
    /// The verb of a request by its method; a request that names no object acts on the collection
    /// (C8, C17).
    pub fn from_method(method: &Method, named: bool) -> Self {
        match *method {
            Method::GET | Method::HEAD if named => Self::Get,
            Method::GET | Method::HEAD => Self::List,
            Method::POST => Self::Create,
            Method::PUT => Self::Update,
            Method::PATCH => Self::Patch,
            Method::DELETE if named => Self::Delete,
            Method::DELETE => Self::DeleteCollection,
            _ => Self::None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
            Self::Impersonate => "impersonate",
            Self::None => "",
        }
    }
}

/// One question to the authorizer. The version is always `v1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attributes<'a> {
    pub verb: Verb,
    /// Empty for the core group.
    pub group: &'static str,
    /// In the plural.
    pub resource: &'static str,
    /// Empty where the resource itself is meant.
    pub subresource: &'a str,
    /// Empty for what has none, and for the cluster-wide question of an empty namespace (C9).
    pub namespace: &'a str,
    pub name: &'a str,
}

impl<'a> Attributes<'a> {
    /// May `verb` be done through the proxy of `target`? The name is the whole id, scheme and port
    /// included (C18).
    pub fn for_proxy(verb: Verb, target: &'a Target<'a>) -> Self {
        let (resource, namespace, name) =
            (target.resource.plural(), &*target.namespace, &*target.id);
        Self {
            verb,
            group: "",
            resource,
            subresource: "proxy",
            namespace,
            name,
        }
    }

    /// May the object behind `target` be looked at, whose name is `name`?
    pub fn for_object(target: &'a Target<'a>, name: &'a str) -> Self {
        Self {
            verb: Verb::Get,
            subresource: "",
            name,
            ..Self::for_proxy(Verb::Get, target)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_follow_the_method_and_whether_an_object_is_named() {
        let cases = [
            ("GET", true, "get"),
            ("HEAD", true, "get"),
            ("POST", true, "create"),
            ("PUT", true, "update"),
            ("PATCH", true, "patch"),
            ("DELETE", true, "delete"),
            ("OPTIONS", true, ""),
            ("TRACE", true, ""),
            ("BREW", true, ""),
            ("GET", false, "list"),
            ("DELETE", false, "deletecollection"),
            ("POST", false, "create"),
        ];
        for (method, named, verb) in cases {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(
                Verb::from_method(&method, named).as_str(),
                verb,
                "{method} named: {named}"
            );
        }
    }
}
