//! Attributes of an authorization request: verb, resource, namespace and name (CONFORMANCE C15 to
//! C19).

use std::fmt;

use http::Method;
use percent_encoding::percent_decode_str;

use super::Target;

/// Resource with the subresource `/proxy/`. The API group of all of them is core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    Nodes,
    Pods,
    Services,
}

impl Resource {
    pub const ALL: [Self; 3] = [Self::Nodes, Self::Pods, Self::Services];

    /// Returns the plural, as in paths and RBAC rules.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Pods => "pods",
            Self::Services => "services",
        }
    }

    /// Returns the singular, for messages.
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

/// RBAC verb. [`Verb::None`] is the empty verb, which only a rule with `*` grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
    /// Acting as another user.
    Impersonate,
    None,
}

impl Verb {
    /// Returns the verb of a request. One without the name of an object acts on the collection,
    /// which it lists or, if the query says so, watches (C8, C17).
    pub fn from_request(method: &Method, named: bool, query: Option<&str>) -> Self {
        match *method {
            Method::GET | Method::HEAD if named => Self::Get,
            Method::GET | Method::HEAD if is_watch(query) => Self::Watch,
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
            Self::Watch => "watch",
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

/// Returns true if the first parameter `watch` is set, as kube-apiserver reads it: any value but
/// `false` and `0` sets it, also none.
fn is_watch(query: Option<&str>) -> bool {
    let decoded = |text: &str| {
        let text = text.replace('+', " ");
        percent_decode_str(&text).decode_utf8_lossy().into_owned()
    };
    // Go drops pairs with a semicolon or a malformed escape.
    let pairs = query.unwrap_or_default().split('&');
    let values = pairs.filter(|pair| !pair.contains(';') && has_valid_escapes(pair));
    let mut values = values.filter_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(name) == "watch").then(|| decoded(value).to_ascii_lowercase())
    });
    values
        .next()
        .is_some_and(|value| value != "false" && value != "0")
}

fn has_valid_escapes(text: &str) -> bool {
    text.split('%').skip(1).all(|after| {
        let digits = after.as_bytes();
        digits.len() >= 2 && digits[..2].iter().all(u8::is_ascii_hexdigit)
    })
}

/// Attributes of one authorization request. The version is always `v1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attributes<'a> {
    pub verb: Verb,
    /// Empty for the core group.
    pub group: &'static str,
    /// Plural of the resource.
    pub resource: &'static str,
    /// Empty for the resource itself.
    pub subresource: &'a str,
    /// Empty for cluster-scoped resources, and for a path with an empty namespace, which is
    /// authorized cluster-wide (C9).
    pub namespace: &'a str,
    pub name: &'a str,
}

impl<'a> Attributes<'a> {
    /// Creates the attributes of a proxied request. The name is the whole id with scheme and port
    /// (C18).
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

    /// Creates the attributes of `get` on the object `name` that `target` refers to.
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
    fn derives_verbs_from_method_and_name() {
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
                Verb::from_request(&method, named, None).as_str(),
                verb,
                "{method} named: {named}"
            );
        }
    }

    #[test]
    fn watches_collection_if_the_query_says_so() {
        let cases = [
            ("watch=1", "watch"),
            ("watch=true", "watch"),
            ("watch", "watch"),
            ("watch=", "watch"),
            ("watch=no", "watch"),
            ("limit=x&watch=t&watch=0", "watch"),
            ("%77atch=1", "watch"),
            ("x=;&watch=1", "watch"),
            ("watch=0", "list"),
            ("watch=False", "list"),
            ("watch=false&watch=1", "list"),
            ("watch=f%61lse", "list"),
            ("Watch=1", "list"),
            ("x=watch", "list"),
            ("watch=1;x", "list"),
            ("watch=%zz", "list"),
            ("", "list"),
        ];
        for (query, verb) in cases {
            for method in [Method::GET, Method::HEAD] {
                let of = |named| Verb::from_request(&method, named, Some(query)).as_str();
                assert_eq!((of(false), of(true)), (verb, "get"), "{method} {query}");
            }
            let delete = Verb::from_request(&Method::DELETE, false, Some(query));
            assert_eq!(delete, Verb::DeleteCollection, "{query}");
        }
    }
}
