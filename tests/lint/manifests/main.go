// Command manifests renders kustomizations as `kubectl kustomize` does and checks every object:
//
//   - it decodes strictly into the types that kube-apiserver has: no unknown, doubled or mistyped field;
//   - a namespaced object names its namespace, as no kustomization here adds it;
//   - a pod template passes the Pod Security Standard that its namespace enforces, `restricted` if the namespace is not
//     rendered. kube-apiserver enforces it on pods alone: a Deployment that breaks it is accepted, and never gets a pod.
//
// Usage:
//
//	manifests -out DIR FOLDER|FILE...
//
// The rendered files are left in DIR for other linters. It exits with 1 where there is a finding.
package main

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	psapi "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// Kinds without a namespace, of those that are deployed here.
var clusterScoped = map[string]bool{"Namespace": true, "ClusterRole": true, "ClusterRoleBinding": true}

func main() {
	out := flag.String("out", "", "folder for the rendered files")
	flag.Parse()
	if *out == "" || flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	linter, err := newLinter()
	for _, path := range flag.Args() {
		if err != nil {
			break
		}
		err = linter.lint(path, *out)
	}
	for _, finding := range linter.findings {
		fmt.Fprintln(os.Stderr, finding)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if err != nil || len(linter.findings) > 0 {
		os.Exit(1)
	}
}

type linter struct {
	decoder     runtime.Decoder
	podSecurity policy.Evaluator
	// Levels of the namespaces of the file, which precede their objects.
	levels   map[string]psapi.Level
	findings []string
}

func newLinter() (*linter, error) {
	types := runtime.NewScheme()
	if err := errors.Join(scheme.AddToScheme(types), certmanager.AddToScheme(types)); err != nil {
		return &linter{}, err
	}
	podSecurity, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	codecs := serializer.NewCodecFactory(types, serializer.EnableStrict)
	return &linter{decoder: codecs.UniversalDeserializer(), podSecurity: podSecurity}, err
}

func (l *linter) lint(path, out string) error {
	text, err := render(path)
	if err != nil {
		l.report(path, "%v", err)
		return nil
	}
	l.levels = map[string]psapi.Level{}
	rendered := filepath.Join(out, strings.Trim(strings.ReplaceAll(filepath.ToSlash(path), "/", "-"), ".-")+".yaml")
	if err := errors.Join(os.MkdirAll(out, 0o755), os.WriteFile(rendered, text, 0o644)); err != nil {
		return err
	}
	documents := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for count := 0; ; count++ {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			if count == 0 {
				l.report(path, "has no objects")
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		l.object(path, document)
	}
}

func render(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return os.ReadFile(path)
	}
	objects, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), path)
	if err != nil {
		return nil, err
	}
	return objects.AsYaml()
}

func (l *linter) object(path string, document []byte) {
	object, kind, err := l.decoder.Decode(document, nil, nil)
	if err != nil {
		l.report(path, "%v, in the object\n%s", err, document)
		return
	}
	meta := object.(metav1.Object)
	id := kind.Kind + " " + meta.GetName()
	if meta.GetNamespace() == "" && !clusterScoped[kind.Kind] {
		l.report(path, "%s: no namespace", id)
	}
	if namespace, ok := object.(*corev1.Namespace); ok {
		level, err := psapi.ParseLevel(namespace.Labels[psapi.EnforceLevelLabel])
		if err != nil {
			l.report(path, "%s: %s: %v", id, psapi.EnforceLevelLabel, err)
			return
		}
		l.levels[namespace.Name] = level
	}
	if template := podTemplate(object); template != nil {
		enforced, ok := l.levels[meta.GetNamespace()]
		if !ok {
			enforced = psapi.LevelRestricted
		}
		level := psapi.LevelVersion{Level: enforced, Version: psapi.LatestVersion()}
		for _, result := range l.podSecurity.EvaluatePod(level, &template.ObjectMeta, &template.Spec) {
			if !result.Allowed {
				l.report(path, "%s: Pod Security `%s`: %s: %s", id, enforced, result.ForbiddenReason, result.ForbiddenDetail)
			}
		}
	}
}

func podTemplate(object runtime.Object) *corev1.PodTemplateSpec {
	switch object := object.(type) {
	case *appsv1.Deployment:
		return &object.Spec.Template
	case *appsv1.DaemonSet:
		return &object.Spec.Template
	case *appsv1.StatefulSet:
		return &object.Spec.Template
	case *batchv1.Job:
		return &object.Spec.Template
	case *batchv1.CronJob:
		return &object.Spec.JobTemplate.Spec.Template
	case *corev1.Pod:
		return &corev1.PodTemplateSpec{ObjectMeta: object.ObjectMeta, Spec: object.Spec}
	}
	return nil
}

func (l *linter) report(path, format string, arguments ...any) {
	l.findings = append(l.findings, path+": "+fmt.Sprintf(format, arguments...))
}
