//! RBAC evaluated on objects of a folder, with the semantics of kube-apiserver's RBAC authorizer.

use std::collections::HashMap;

use k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject as RbacSubject,
};

use crate::model::{Attributes, Identity};

/// The group that may do everything, before any rule is looked at.
const MASTERS: &str = "system:masters";

/// Who may do what, ready to be asked.
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
        let here = self
            .namespaced
            .get(attributes.namespace)
            .into_iter()
            .flatten();
        let mut grants = self.cluster_wide.iter().chain(here);
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
    let named = rule.resource_names.as_deref().unwrap_or_default();
    rule.verbs
        .iter()
        .any(|granted| granted == "*" || granted == verb.as_str())
        && any(&rule.api_groups, &|granted| {
            granted == group || granted == "*"
        })
        && any(&rule.resources, &|granted| match granted.split_once('/') {
            Some((of, sub)) => sub == subresource && (of == "*" || of == resource),
            None => granted == "*" || (granted == resource && subresource.is_empty()),
        })
        && (named.is_empty() || named.iter().any(|granted| granted == name))
}

/// Gathers objects of a folder in any order.
#[derive(Debug, Default)]
pub struct RbacRulesBuilder {
    pub roles: Vec<Role>,
    pub cluster_roles: Vec<ClusterRole>,
    pub role_bindings: Vec<RoleBinding>,
    pub cluster_role_bindings: Vec<ClusterRoleBinding>,
}

impl RbacRulesBuilder {
    /// Joins bindings with the roles that they name. A binding whose role is missing grants
    /// nothing, as in a cluster.
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
        let mut granted = RbacRules::default();
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
                Some(found) => granted.cluster_wide.push(grant(subjects, found, "")),
                None => dangling("ClusterRoleBinding", metadata.name, &role_ref),
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
                    granted.namespaced.entry(namespace).or_default().push(grant);
                }
                None => dangling("RoleBinding", metadata.name, &role_ref),
            }
        }
        granted
    }
}

fn dangling(kind: &str, name: Option<String>, role: &RoleRef) {
    let name = name.unwrap_or_default();
    tracing::warn!(
        "{kind} {name:?} grants nothing: there is no {} {:?}",
        role.kind,
        role.name
    );
}

fn grant(subjects: Option<Vec<RbacSubject>>, rules: &[PolicyRule], namespace: &str) -> Grant {
    let subjects = subjects.unwrap_or_default().into_iter();
    let subjects = subjects.filter_map(|subject| match &*subject.kind {
        "User" => Some(Subject::User(subject.name)),
        "Group" => Some(Subject::Group(subject.name)),
        "ServiceAccount" => {
            let home = subject.namespace.as_deref().unwrap_or(namespace);
            Some(Subject::User(format!(
                "system:serviceaccount:{home}:{}",
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
mod tests {
    use super::*;
    use crate::model::{Resource, Verb};

    fn rules(yaml: &str) -> RbacRules {
        let mut builder = RbacRulesBuilder::default();
        for document in yaml.split("---\n") {
            let kind = document
                .lines()
                .find_map(|line| line.strip_prefix("kind: "))
                .unwrap();
            match kind {
                "Role" => builder
                    .roles
                    .push(serde_saphyr::from_str(document).unwrap()),
                "ClusterRole" => builder
                    .cluster_roles
                    .push(serde_saphyr::from_str(document).unwrap()),
                "RoleBinding" => builder
                    .role_bindings
                    .push(serde_saphyr::from_str(document).unwrap()),
                "ClusterRoleBinding" => builder
                    .cluster_role_bindings
                    .push(serde_saphyr::from_str(document).unwrap()),
                kind => panic!("{kind}"),
            }
        }
        builder.build()
    }

    const FOLDER: &str = r#"
kind: ClusterRole
metadata: {name: reader}
rules: [{apiGroups: [""], resources: [pods/proxy, services/proxy], verbs: [get]}]
---
kind: RoleBinding
metadata: {name: devs-read, namespace: shop}
roleRef: {kind: ClusterRole, name: reader}
subjects: [{kind: Group, name: devs}, {kind: ServiceAccount, name: ci}]
---
kind: Role
metadata: {name: one, namespace: shop}
rules: [{apiGroups: ["*"], resources: ["*/proxy"], verbs: ["*"], resourceNames: ["http:web:80"]}]
---
kind: RoleBinding
metadata: {name: joe-one, namespace: shop}
roleRef: {kind: Role, name: one}
subjects: [{kind: User, name: joe}]
---
kind: ClusterRole
metadata: {name: nodes}
rules:
- {apiGroups: [apps], resources: [nodes/proxy], verbs: [get]}
- {apiGroups: [""], resources: [nodes, pods/log], verbs: ["*"]}
---
kind: ClusterRoleBinding
metadata: {name: joe-nodes}
roleRef: {kind: ClusterRole, name: nodes}
subjects: [{kind: User, name: joe}]
---
kind: ClusterRole
metadata: {name: everything}
rules: [{apiGroups: [""], resources: ["*"], verbs: ["*"]}]
---
kind: ClusterRoleBinding
metadata: {name: root}
roleRef: {kind: ClusterRole, name: everything}
subjects: [{kind: User, name: root}]
---
kind: ClusterRoleBinding
metadata: {name: dangling}
roleRef: {kind: ClusterRole, name: missing}
subjects: [{kind: Group, name: devs}]
"#;

    #[test]
    fn rules_grant_what_the_apiservers_rbac_grants() {
        use Resource::{Nodes, Pods, Services};
        use Verb::{Create, Get, None};
        let rules = rules(FOLDER.trim_start());
        let devs = Identity::new("jane", "", vec!["devs".into()], Default::default());
        let ci = Identity::new(
            "system:serviceaccount:shop:ci",
            "",
            vec![],
            Default::default(),
        );
        let joe = Identity::new("joe", "", vec![], Default::default());
        let root = Identity::new("root", "", vec![], Default::default());
        let master = Identity::new("x", "", vec![MASTERS.into()], Default::default());
        let cases = [
            ("a group reads", &devs, Get, Pods, "shop", "p", true),
            (
                "in its namespace only",
                &devs,
                Get,
                Pods,
                "other",
                "p",
                false,
            ),
            ("and not everywhere", &devs, Get, Pods, "", "p", false),
            (
                "and does not write",
                &devs,
                Create,
                Services,
                "shop",
                "s",
                false,
            ),
            (
                "the empty verb is none of its",
                &devs,
                None,
                Pods,
                "shop",
                "p",
                false,
            ),
            (
                "a service account of the binding's namespace",
                &ci,
                Get,
                Services,
                "shop",
                "s",
                true,
            ),
            (
                "names are whole ids",
                &joe,
                Get,
                Services,
                "shop",
                "http:web:80",
                true,
            ),
            ("not their parts", &joe, Get, Services, "shop", "web", false),
            (
                "a star grants the empty verb",
                &joe,
                None,
                Pods,
                "shop",
                "http:web:80",
                true,
            ),
            (
                "other groups and subresources are none of ours",
                &joe,
                Get,
                Nodes,
                "",
                "n",
                false,
            ),
            (
                "a star is every resource",
                &root,
                Create,
                Nodes,
                "",
                "n",
                true,
            ),
            ("in every namespace", &root, None, Pods, "any", "p", true),
            ("masters may all", &master, None, Nodes, "", "n", true),
        ];
        for (what, who, verb, resource, namespace, name, allowed) in cases {
            let resource = resource.plural();
            let proxy = Attributes {
                verb,
                group: "",
                resource,
                subresource: "proxy",
                namespace,
                name,
            };
            assert_eq!(rules.allows(who, proxy), allowed, "{what}");
        }
    }

    #[test]
    fn other_resources_are_asked_for_by_group_and_subresource() {
        let rules = rules(
            "kind: ClusterRole
metadata: {name: impersonator}
rules:
- {apiGroups: [''], resources: [users], verbs: [impersonate], resourceNames: [jane]}
- {apiGroups: [authentication.k8s.io], resources: [userextras/scopes], verbs: [impersonate]}
---
kind: ClusterRoleBinding
metadata: {name: joe}
roleRef: {kind: ClusterRole, name: impersonator}
subjects: [{kind: User, name: joe}]
",
        );
        let joe = Identity::new("joe", "", vec![], Default::default());
        for (group, resource, subresource, name, allowed) in [
            ("", "users", "", "jane", true),
            ("", "users", "", "admin", false),
            ("", "users", "proxy", "jane", false),
            ("authentication.k8s.io", "userextras", "scopes", "all", true),
            ("authentication.k8s.io", "userextras", "other", "all", false),
            ("", "userextras", "scopes", "all", false),
        ] {
            let asked = Attributes {
                verb: Verb::Impersonate,
                group,
                resource,
                subresource,
                namespace: "",
                name,
            };
            assert_eq!(rules.allows(&joe, asked), allowed, "{asked:?}");
        }
    }
}
