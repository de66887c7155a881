package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

const (
	defaultImage = "ghcr.io/kube-bastion/kube-bastion:0.1.0"
	ownImage     = "registry.example.com/bastion:9"
	ownLines     = `
namespace: elsewhere
images: [{name: ghcr.io/kube-bastion/kube-bastion, newName: registry.example.com/bastion, newTag: "9"}]
`
	header = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
)

// Secrets that the operator creates.
var (
	serving = []string{"kube-bastion-tls"}
	kubelet = []string{"kube-bastion-kubelet-client"}
)

// deployTree returns a copy of deploy/ at /deploy. edit changes files by their path.
func deployTree(t *testing.T, edit map[string]*strings.Replacer) filesys.FileSystem {
	t.Helper()
	root := filepath.Join("..", "..", "..", "deploy")
	tree := filesys.MakeFsInMemory()
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if replacer := edit[name]; replacer != nil {
			edited := replacer.Replace(string(text))
			if edited == string(text) {
				t.Fatalf("%s: nothing to edit", name)
			}
			text = []byte(edited)
		}
		return tree.WriteFile(filepath.Join("/deploy", name), text)
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// rendered builds a kustomization at /install/bastion, or `at` without one.
func rendered(t *testing.T, tree filesys.FileSystem, kustomization, at string) []runtime.Object {
	t.Helper()
	if kustomization != "" {
		at = "/install/bastion"
		if err := tree.WriteFile(at+"/kustomization.yaml", []byte(header+kustomization)); err != nil {
			t.Fatal(err)
		}
	}
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(tree, at)
	if err != nil {
		t.Fatal(err)
	}
	linter, err := newLinter()
	if err != nil {
		t.Fatal(err)
	}
	var objects []runtime.Object
	for _, resource := range built.Resources() {
		text, err := resource.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		object, _, err := linter.decoder.Decode(text, nil, nil)
		if err != nil {
			t.Fatalf("%v, in the object\n%s", err, text)
		}
		objects = append(objects, object)
	}
	return objects
}

func components(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("..", "..", "..", "deploy", "components", "*"))
	if err != nil || len(paths) < 3 {
		t.Fatal(paths, err)
	}
	for index, path := range paths {
		paths[index] = filepath.Base(path)
	}
	return paths
}

func assertComplete(t *testing.T, objects []runtime.Object, want install) {
	t.Helper()
	if len(objects) < 8 {
		t.Errorf("%d objects only", len(objects))
	}
	for _, finding := range references(objects, want) {
		t.Error(finding)
	}
}

func TestInstallsAreCompleteInAnyNamespace(t *testing.T) {
	byDefault := install{"kube-bastion", defaultImage, serving}
	elsewhere := install{"elsewhere", ownImage, serving}
	base, overlay := "resources: [../../deploy]", "resources: [../../deploy/overlays/cert-manager]"
	issued := func(want install) install {
		want.secrets = nil
		return want
	}
	cases := map[string]struct {
		kustomization string
		want          install
	}{
		"plain":                             {base, byDefault},
		"plain, elsewhere":                  {base + ownLines, elsewhere},
		"cert-manager":                      {overlay, issued(byDefault)},
		"cert-manager, elsewhere":           {overlay + ownLines, issued(elsewhere)},
		"cert-manager, two kustomizations":  {"resources: [../inner]\nnamespace: elsewhere", issued(elsewhere)},
		"cert-manager, with a further name": {overlay + ownLines + dnsNamePatch, issued(elsewhere)},
		"with a configuration, elsewhere":   {base + ownLines + configuration, elsewhere},
	}
	for _, component := range components(t) {
		line := "\ncomponents: [../../deploy/components/" + component + "]"
		with := func(want install) install {
			want.secrets = slices.Concat(want.secrets, kubelet)
			return want
		}
		cases[component] = struct {
			kustomization string
			want          install
		}{base + line, with(byDefault)}
		cases[component+", elsewhere"] = struct {
			kustomization string
			want          install
		}{base + line + ownLines, with(elsewhere)}
		cases[component+", cert-manager, elsewhere"] = struct {
			kustomization string
			want          install
		}{overlay + line + ownLines, with(issued(elsewhere))}
	}
	for name, test := range cases {
		t.Run(name, func(t *testing.T) {
			tree := deployTree(t, nil)
			inner := header + "resources: [../../deploy/overlays/cert-manager]" + ownLines
			inner = strings.Replace(inner, "elsewhere", "first", 1)
			if err := tree.WriteFile("/install/inner/kustomization.yaml", []byte(inner)); err != nil {
				t.Fatal(err)
			}
			if err := tree.WriteFile("/install/bastion/config.yaml", []byte("of: operator\n")); err != nil {
				t.Fatal(err)
			}
			assertComplete(t, rendered(t, tree, test.kustomization, ""), test.want)
		})
	}
}

const dnsNamePatch = `
patches:
- target: {kind: Certificate, name: kube-bastion}
  patch: |
    - {op: add, path: /spec/dnsNames/-, value: bastion.example.com}
`

const configuration = `
configMapGenerator:
- {name: kube-bastion, namespace: kube-bastion, behavior: replace, files: [config.yaml]}
`

// The two lines of the base apply to all installs, so that a copy of deploy/ can be edited as well.
func TestLinesOfTheBaseApplyToAllInstalls(t *testing.T) {
	edit := map[string]*strings.Replacer{"base/kustomization.yaml": strings.NewReplacer(
		"namespace: kube-bastion\n", "namespace: elsewhere\n",
		"newTag: 0.1.0\n", "newName: registry.example.com/bastion\n    newTag: \"9\"\n",
	)}
	for at, secrets := range map[string][]string{"/deploy": serving, "/deploy/overlays/cert-manager": nil} {
		want := install{"elsewhere", ownImage, secrets}
		assertComplete(t, rendered(t, deployTree(t, edit), "", at), want)
	}
}

func TestComponentsBuildAlone(t *testing.T) {
	for _, component := range components(t) {
		rendered(t, deployTree(t, nil), "", "/deploy/components/"+component)
	}
}

func TestExistingNamespaceIsLeftOut(t *testing.T) {
	line := "resources: [../../deploy]\ncomponents: [../../deploy/components/existing-namespace]"
	for _, object := range rendered(t, deployTree(t, nil), line+ownLines, "") {
		if kind := object.GetObjectKind().GroupVersionKind().Kind; kind == "Namespace" {
			t.Error("the install has a Namespace")
		}
	}
}

func TestHostNetworkInstallIsOneDaemonSet(t *testing.T) {
	line := "resources: [../../deploy]\ncomponents: [../../deploy/components/load-balancer-controller-host-network]"
	kinds := map[string]int{}
	for _, object := range rendered(t, deployTree(t, nil), line+ownLines, "") {
		kinds[object.GetObjectKind().GroupVersionKind().Kind]++
		daemons, ok := object.(*appsv1.DaemonSet)
		if !ok {
			continue
		}
		pod := daemons.Spec.Template.Spec
		capabilities := pod.Containers[0].SecurityContext.Capabilities
		if !pod.HostNetwork || len(pod.SecurityContext.Sysctls) > 0 || *pod.SecurityContext.RunAsUser != 0 ||
			!slices.Equal(capabilities.Add, []corev1.Capability{"NET_BIND_SERVICE"}) ||
			!slices.Equal(capabilities.Drop, []corev1.Capability{"ALL"}) {
			t.Errorf("%+v", pod)
		}
	}
	if kinds["DaemonSet"] != 1 || kinds["Deployment"] != 0 || kinds["PodDisruptionBudget"] != 0 {
		t.Error(kinds)
	}
}

func TestLoadBalancerComponentsGrantWhatTheControllerNeeds(t *testing.T) {
	wanted := []permission{
		{"", "services", "", "list"}, {"", "services", "", "watch"}, {"", "services/status", "", "patch"},
		{"", "nodes", "", "list"}, {"", "nodes", "", "watch"}, {"", "events", "", "create"},
		{"", "namespaces", "", "list"}, {"", "namespaces", "", "watch"},
	}
	lease := []permission{
		{"coordination.k8s.io", "leases", "kube-bastion-load-balancer", "get"},
		{"coordination.k8s.io", "leases", "kube-bastion-load-balancer", "update"},
		{"coordination.k8s.io", "leases", "", "create"},
	}
	for _, component := range []string{"load-balancer-controller", "load-balancer-controller-host-network"} {
		line := "resources: [../../deploy]\ncomponents: [../../deploy/components/" + component + "]"
		c := checker{objects: rendered(t, deployTree(t, nil), line, "")}
		rules, _ := c.rules("kube-bastion", "kube-bastion")
		for _, want := range wanted {
			if !slices.ContainsFunc(rules, want.isGrantedBy) {
				t.Errorf("%s: %v is not granted", component, want)
			}
		}
		for _, object := range c.objects {
			if role, ok := object.(*rbacv1.Role); ok {
				rules = append(rules, role.Rules...)
			}
		}
		for _, want := range lease {
			if !slices.ContainsFunc(rules, want.isGrantedBy) {
				t.Errorf("%s: %v is not granted", component, want)
			}
		}
	}
}

// Each finding of `references`, by an edit of the manifests that causes it.
func TestBrokenReferencesAreFound(t *testing.T) {
	for _, test := range []struct{ file, old, new, finding string }{
		{"base/rbac.yaml", "    namespace: kube-bastion", "    namespace: other",
			"refers to ServiceAccount other/kube-bastion, which does not exist"},
		{"base/rbac.yaml", "  kind: ClusterRole\n  name: kube-bastion\n", "  kind: ClusterRole\n  name: missing\n",
			"refers to ClusterRole /missing"},
		{"base/rbac.yaml", "verbs: [list, watch]", "verbs: [list]", "may not watch configmaps"},
		{"base/rbac.yaml", "name: system:auth-delegator", "name: system:basic-user", "lacks system:auth-delegator"},
		{"base/deployment.yaml", "serviceAccountName: kube-bastion", "serviceAccountName: missing",
			"refers to ServiceAccount elsewhere/missing"},
		{"base/deployment.yaml", "          configMap:\n            name: kube-bastion",
			"          configMap:\n            name: missing", "refers to ConfigMap elsewhere/missing"},
		{"base/deployment.yaml", "secretName: kube-bastion-tls", "secretName: missing", "nothing makes its Secret missing"},
		{"base/deployment.yaml", "image: ghcr.io/", "image: ghcr.io/other/", "instead of " + ownImage},
		{"base/service.yaml", "targetPort: https", "targetPort: missing", "no container has the port missing"},
		{"base/service.yaml", "app.kubernetes.io/name: kube-bastion", "app.kubernetes.io/name: other", "selects no pods"},
		{"base/networkpolicy.yaml", "app.kubernetes.io/name: kube-bastion", "app: other", "selects no pods"},
		{"base/poddisruptionbudget.yaml", "app.kubernetes.io/name: kube-bastion", "app: other", "selects no pods"},
		{"overlays/cert-manager/certificate.yaml", "$(KUBE_BASTION_NAMESPACE)", "kube-bastion",
			"the name kube-bastion.kube-bastion is of another namespace"},
		{"overlays/cert-manager/varreference.yaml", "spec/dnsNames", "spec/other", "has a variable"},
		{"overlays/cert-manager/certificate.yaml", "kind: Issuer\n    name: kube-bastion-ca",
			"kind: Issuer\n    name: missing", "refers to Issuer elsewhere/missing"},
		{"overlays/cert-manager/certificate.yaml", "  ca:\n    secretName: kube-bastion-ca",
			"  ca:\n    secretName: missing", "no Certificate issues its Secret missing"},
	} {
		t.Run(test.finding, func(t *testing.T) {
			edit := map[string]*strings.Replacer{test.file: strings.NewReplacer(test.old, test.new)}
			line := "resources: [../../deploy/overlays/cert-manager]" + ownLines
			objects := rendered(t, deployTree(t, edit), line, "")
			findings := references(objects, install{"elsewhere", ownImage, nil})
			if !slices.ContainsFunc(findings, func(finding string) bool {
				return strings.Contains(finding, test.finding)
			}) {
				t.Errorf("not found: %v", findings)
			}
		})
	}
}
