package main

import (
	"fmt"
	"slices"
	"strings"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// install is what a render must have been made for.
type install struct {
	namespace string
	image     string
	// Secrets that the operator creates.
	secrets []string
}

// permission is one that the bastion needs.
type permission struct{ group, resource, name, verb string }

// needed are the permissions that the bastion's own ClusterRole grants. Reviews are granted by system:auth-delegator.
var needed = func() []permission {
	var all []permission
	for _, verb := range []string{"list", "watch"} {
		for _, resource := range []string{"nodes", "pods", "services"} {
			all = append(all, permission{"", resource, "", verb})
		}
		all = append(all, permission{"discovery.k8s.io", "endpointslices", "", verb},
			permission{"", "configmaps", "extension-apiserver-authentication", verb})
	}
	return all
}()

// checker looks up the references of the objects of one render.
type checker struct {
	install
	objects  []runtime.Object
	names    map[string]bool
	findings []string
}

// references returns the references of an install that lead nowhere, and the objects that are not in its namespace.
func references(objects []runtime.Object, want install) []string {
	c := checker{install: want, objects: objects, names: map[string]bool{}}
	for _, object := range objects {
		meta := object.(metav1.Object)
		c.names[id(object, meta.GetNamespace(), meta.GetName())] = true
	}
	for _, object := range objects {
		c.object(object)
	}
	c.permissions()
	return c.findings
}

func id(object runtime.Object, namespace, name string) string {
	return object.GetObjectKind().GroupVersionKind().Kind + " " + namespace + "/" + name
}

func (c *checker) report(object runtime.Object, format string, arguments ...any) {
	meta := object.(metav1.Object)
	c.findings = append(c.findings, id(object, meta.GetNamespace(), meta.GetName())+": "+fmt.Sprintf(format, arguments...))
}

// need reports a reference to an object that the render does not have.
func (c *checker) need(object runtime.Object, kind, namespace, name string) {
	if !c.names[kind+" "+namespace+"/"+name] {
		c.report(object, "refers to %s %s/%s, which does not exist", kind, namespace, name)
	}
}

func (c *checker) object(object runtime.Object) {
	meta := object.(metav1.Object)
	kind := object.GetObjectKind().GroupVersionKind().Kind
	switch {
	case kind == "Namespace" && meta.GetName() != c.namespace:
		c.report(object, "is not the namespace %s", c.namespace)
	case !clusterScoped[kind] && meta.GetNamespace() != c.namespace:
		c.report(object, "is not in the namespace %s", c.namespace)
	}
	switch object := object.(type) {
	case *rbacv1.RoleBinding:
		c.binding(object, object.Subjects, object.RoleRef)
	case *rbacv1.ClusterRoleBinding:
		c.binding(object, object.Subjects, object.RoleRef)
	case *appsv1.Deployment, *appsv1.DaemonSet:
		c.workload(object, podTemplate(object).Spec)
	case *corev1.Service:
		c.selects(object, labels.SelectorFromSet(object.Spec.Selector))
		for _, port := range object.Spec.Ports {
			if port.TargetPort.Type == intstr.String && !c.hasPort(port.TargetPort.StrVal) {
				c.report(object, "no container has the port %s", port.TargetPort.StrVal)
			}
		}
	case *policyv1.PodDisruptionBudget:
		c.selectsBy(object, object.Spec.Selector)
	case *networkingv1.NetworkPolicy:
		c.selectsBy(object, &object.Spec.PodSelector)
	case *certmanager.Certificate:
		c.certificate(object)
	case *certmanager.Issuer:
		if object.Spec.CA != nil && !c.isIssued(object.Spec.CA.SecretName) {
			c.report(object, "no Certificate issues its Secret %s", object.Spec.CA.SecretName)
		}
	}
}

func (c *checker) binding(object runtime.Object, subjects []rbacv1.Subject, role rbacv1.RoleRef) {
	for _, subject := range subjects {
		if subject.Kind == rbacv1.ServiceAccountKind {
			c.need(object, subject.Kind, subject.Namespace, subject.Name)
		}
	}
	if role.Kind == "ClusterRole" && !strings.HasPrefix(role.Name, "system:") {
		c.need(object, role.Kind, "", role.Name)
	} else if role.Kind == "Role" {
		c.need(object, role.Kind, object.(metav1.Object).GetNamespace(), role.Name)
	}
}

func (c *checker) workload(object runtime.Object, pod corev1.PodSpec) {
	namespace := object.(metav1.Object).GetNamespace()
	c.need(object, "ServiceAccount", namespace, pod.ServiceAccountName)
	for _, volume := range pod.Volumes {
		if volume.ConfigMap != nil {
			c.need(object, "ConfigMap", namespace, volume.ConfigMap.Name)
		}
		if secret := volume.Secret; secret != nil && !slices.Contains(c.secrets, secret.SecretName) &&
			!c.isIssued(secret.SecretName) {
			c.report(object, "nothing makes its Secret %s", secret.SecretName)
		}
	}
	for _, container := range pod.Containers {
		if container.Image != c.image {
			c.report(object, "image %s instead of %s", container.Image, c.image)
		}
	}
}

func (c *checker) certificate(object *certmanager.Certificate) {
	if object.Spec.IssuerRef.Kind == "Issuer" {
		c.need(object, "Issuer", object.Namespace, object.Spec.IssuerRef.Name)
	}
	if object.Spec.IsCA {
		return
	}
	service := object.Name + "." + c.namespace + ".svc"
	c.need(object, "Service", c.namespace, object.Name)
	if !slices.Contains(object.Spec.DNSNames, service) {
		c.report(object, "lacks the name %s", service)
	}
	for _, name := range object.Spec.DNSNames {
		parts := strings.Split(name, ".")
		if parts[0] == object.Name && len(parts) > 1 && parts[1] != c.namespace {
			c.report(object, "the name %s is of another namespace", name)
		}
		if strings.Contains(name, "$") {
			c.report(object, "the name %s has a variable", name)
		}
	}
}

// isIssued returns true if a Certificate makes the Secret.
func (c *checker) isIssued(secret string) bool {
	return slices.ContainsFunc(c.objects, func(object runtime.Object) bool {
		certificate, ok := object.(*certmanager.Certificate)
		return ok && certificate.Spec.SecretName == secret
	})
}

// workloads returns the Deployments and DaemonSets, of which an install has one.
func (c *checker) workloads() []runtime.Object {
	var all []runtime.Object
	for _, object := range c.objects {
		switch object.(type) {
		case *appsv1.Deployment, *appsv1.DaemonSet:
			all = append(all, object)
		}
	}
	return all
}

func (c *checker) selectsBy(object runtime.Object, selector *metav1.LabelSelector) {
	parsed, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		c.report(object, "%v", err)
		return
	}
	c.selects(object, parsed)
}

func (c *checker) selects(object runtime.Object, selector labels.Selector) {
	if !slices.ContainsFunc(c.workloads(), func(workload runtime.Object) bool {
		return selector.Matches(labels.Set(podTemplate(workload).Labels)) && !selector.Empty()
	}) {
		c.report(object, "selects no pods of a workload")
	}
}

func (c *checker) hasPort(name string) bool {
	for _, workload := range c.workloads() {
		for _, container := range podTemplate(workload).Spec.Containers {
			for _, port := range container.Ports {
				if port.Name == name {
					return true
				}
			}
		}
	}
	return false
}

// permissions reports the needed permissions that no ClusterRole bound to the pods' service account grants.
func (c *checker) permissions() {
	for _, workload := range c.workloads() {
		account := podTemplate(workload).Spec.ServiceAccountName
		rules, delegates := c.rules(workload.(metav1.Object).GetNamespace(), account)
		if !delegates {
			c.report(workload, "%s lacks system:auth-delegator", account)
		}
		for _, want := range needed {
			if !slices.ContainsFunc(rules, want.isGrantedBy) {
				c.report(workload, "%s may not %s %s %s", account, want.verb, want.resource, want.name)
			}
		}
	}
}

// rules returns the rules of the ClusterRoles that are bound to a service account, and if it may send reviews.
func (c *checker) rules(namespace, account string) (rules []rbacv1.PolicyRule, delegates bool) {
	for _, object := range c.objects {
		binding, ok := object.(*rbacv1.ClusterRoleBinding)
		if !ok || !slices.ContainsFunc(binding.Subjects, func(subject rbacv1.Subject) bool {
			return subject.Kind == rbacv1.ServiceAccountKind && subject.Namespace == namespace && subject.Name == account
		}) {
			continue
		}
		delegates = delegates || binding.RoleRef.Name == "system:auth-delegator"
		for _, object := range c.objects {
			if role, ok := object.(*rbacv1.ClusterRole); ok && role.Name == binding.RoleRef.Name {
				rules = append(rules, role.Rules...)
			}
		}
	}
	return rules, delegates
}

func (want permission) isGrantedBy(rule rbacv1.PolicyRule) bool {
	return slices.Contains(rule.APIGroups, want.group) && slices.Contains(rule.Resources, want.resource) &&
		slices.Contains(rule.Verbs, want.verb) &&
		(len(rule.ResourceNames) == 0 || slices.Contains(rule.ResourceNames, want.name))
}
