//! RBAC rules from manifests, with the semantics of kube-apiserver's RBAC authorizer.

use std::collections::HashMap;

use k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject as RbacSubject,
};

use crate::model::quote::GoQuoted;
use crate::model::{Attributes, Identity};

/// Group that is allowed everything, without any rule.
const MASTERS: &str = "system:masters";

/// Permissions of users and groups, indexed for requests.
#[derive(Debug, Default)]
pub struct RbacRules {
    /// Grants of `ClusterRoleBindings`.
    cluster_wide: Vec<Grant>,
    /// Grants of `RoleBindings`, by namespace.
    namespaced: HashMap<String, Vec<Grant>>,
}

#[derive(Debug)]
struct Grant {
    subjects: Vec<Subject>,
    rules: Vec<PolicyRule>,
}

#[derive(Debug)]
enum Subject {
    User(String),
    Group(String),
}

impl RbacRules {
    /// Returns true if any rule allows `identity` to do what `attributes` describe.
    pub fn allows(&self, identity: &Identity, attributes: Attributes<'_>) -> bool {
        let in_namespace = self
            .namespaced
            .get(attributes.namespace)
            .into_iter()
            .flatten();
        let mut grants = self.cluster_wide.iter().chain(in_namespace);
        identity.groups.iter().any(|group| group == MASTERS)
            || grants.any(|grant| {
                grant.is_for(identity) && grant.rules.iter().any(|rule| covers(rule, attributes))
            })
    }
}

impl Grant {
    fn is_for(&self, identity: &Identity) -> bool {
        self.subjects.iter().any(|subject| match subject {
            Subject::User(name) => *name == identity.user,
            Subject::Group(name) => identity.groups.contains(name),
        })
    }
}

fn covers(rule: &PolicyRule, attributes: Attributes<'_>) -> bool {
    let any = |list: &Option<Vec<String>>, matches: &dyn Fn(&str) -> bool| {
        list.as_deref()
            .unwrap_or_default()
            .iter()
            .any(|entry| matches(entry))
    };
    let Attributes {
        verb,
        group,
        resource,
        subresource,
        name,
        ..
    } = attributes;
    let names = rule.resource_names.as_deref().unwrap_or_default();
    rule.verbs
        .iter()
        .any(|granted| granted == "*" || granted == verb.as_str())
        && any(&rule.api_groups, &|granted| {
            granted == group || granted == "*"
        })
        && any(&rule.resources, &|granted| match granted.split_once('/') {
            Some((parent, sub)) => sub == subresource && (parent == "*" || parent == resource),
            // `*` includes subresources; a plain resource does not.
            None => granted == "*" || (granted == resource && subresource.is_empty()),
        })
        && (names.is_empty() || names.iter().any(|granted| granted == name))
}

/// Collects RBAC objects in any order.
#[derive(Debug, Default)]
pub struct RbacRulesBuilder {
    pub roles: Vec<Role>,
    pub cluster_roles: Vec<ClusterRole>,
    pub role_bindings: Vec<RoleBinding>,
    pub cluster_role_bindings: Vec<ClusterRoleBinding>,
}

impl RbacRulesBuilder {
    /// Joins bindings with their roles. A binding whose role is missing grants nothing, as in a
    /// cluster.
    pub fn build(self) -> RbacRules {
        let cluster_roles: HashMap<_, _> = self
            .cluster_roles
            .into_iter()
            .map(|role| {
                (
                    role.metadata.name.unwrap_or_default(),
                    role.rules.unwrap_or_default(),
                )
            })
            .collect();
        let roles: HashMap<_, _> = self
            .roles
            .into_iter()
            .map(|Role { metadata, rules }| {
                (
                    (
                        metadata.namespace.unwrap_or_default(),
                        metadata.name.unwrap_or_default(),
                    ),
                    rules.unwrap_or_default(),
                )
            })
            .collect();
        let mut index = RbacRules::default();
        for ClusterRoleBinding {
            metadata,
            role_ref,
            subjects,
        } in self.cluster_role_bindings
        {
            let role = (role_ref.kind == "ClusterRole")
                .then(|| cluster_roles.get(&role_ref.name))
                .flatten();
            match role {
                Some(found) => index.cluster_wide.push(grant(subjects, found, "")),
                None => warn_of_missing_role("ClusterRoleBinding", metadata.name, &role_ref),
            }
        }
        for RoleBinding {
            metadata,
            role_ref,
            subjects,
        } in self.role_bindings
        {
            let namespace = metadata.namespace.unwrap_or_default();
            let role = match &*role_ref.kind {
                "ClusterRole" => cluster_roles.get(&role_ref.name),
                "Role" => roles.get(&(namespace.clone(), role_ref.name.clone())),
                _ => None,
            };
            match role {
                Some(found) => {
                    let grant = grant(subjects, found, &namespace);
                    index.namespaced.entry(namespace).or_default().push(grant);
                }
                None => warn_of_missing_role("RoleBinding", metadata.name, &role_ref),
            }
        }
        index
    }
}

fn warn_of_missing_role(kind: &str, name: Option<String>, role: &RoleRef) {
    let name = name.unwrap_or_default();
    tracing::warn!(
        "{kind} {} grants nothing: {} {} does not exist",
        GoQuoted(&name),
        role.kind,
        GoQuoted(&role.name)
    );
}

fn grant(subjects: Option<Vec<RbacSubject>>, rules: &[PolicyRule], namespace: &str) -> Grant {
    let subjects = subjects.unwrap_or_default().into_iter();
    let subjects = subjects.filter_map(|subject| match &*subject.kind {
        "User" => Some(Subject::User(subject.name)),
        "Group" => Some(Subject::Group(subject.name)),
        "ServiceAccount" => {
            // Optional in a RoleBinding: the namespace of the binding.
            let namespace = subject.namespace.as_deref().unwrap_or(namespace);
            Some(Subject::User(format!(
                "system:serviceaccount:{namespace}:{}",
                subject.name
            )))
        }
        _ => None,
    });
    Grant {
        subjects: subjects.collect(),
        rules: rules.to_vec(),
    }
}

#[cfg(test)]
mod tests;
