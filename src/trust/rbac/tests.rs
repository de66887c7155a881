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
fn grants_like_kube_apiserver() {
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
        ("group", &devs, Get, Pods, "shop", "p", true),
        (
            "group in another namespace",
            &devs,
            Get,
            Pods,
            "other",
            "p",
            false,
        ),
        (
            "group at the cluster scope",
            &devs,
            Get,
            Pods,
            "",
            "p",
            false,
        ),
        (
            "verb that is not granted",
            &devs,
            Create,
            Services,
            "shop",
            "s",
            false,
        ),
        (
            "empty verb is not get",
            &devs,
            None,
            Pods,
            "shop",
            "p",
            false,
        ),
        (
            "service account of the binding's namespace",
            &ci,
            Get,
            Services,
            "shop",
            "s",
            true,
        ),
        (
            "resource name equal to the id",
            &joe,
            Get,
            Services,
            "shop",
            "http:web:80",
            true,
        ),
        (
            "resource name equal to a part of the id",
            &joe,
            Get,
            Services,
            "shop",
            "web",
            false,
        ),
        (
            "empty verb with *",
            &joe,
            None,
            Pods,
            "shop",
            "http:web:80",
            true,
        ),
        (
            "other API group or subresource",
            &joe,
            Get,
            Nodes,
            "",
            "n",
            false,
        ),
        ("resource *", &root, Create, Nodes, "", "n", true),
        ("any namespace", &root, None, Pods, "any", "p", true),
        ("system:masters", &master, None, Nodes, "", "n", true),
    ];
    for (case, identity, verb, resource, namespace, name, allowed) in cases {
        let resource = resource.plural();
        let proxy = Attributes {
            verb,
            group: "",
            resource,
            subresource: "proxy",
            namespace,
            name,
        };
        assert_eq!(rules.allows(identity, proxy), allowed, "{case}");
    }
}

#[test]
fn matches_group_and_subresource_of_other_resources() {
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
        let attributes = Attributes {
            verb: Verb::Impersonate,
            group,
            resource,
            subresource,
            namespace: "",
            name,
        };
        assert_eq!(rules.allows(&joe, attributes), allowed, "{attributes:?}");
    }
}
