// Command clientgo sends requests to pods and services with ProxyGet of client-go, as controllers and tools do, and
// checks errors with the apierrors package. It exits with 0 if all results are as expected.
//
// The pods web-1 to web-3 and the service web of the namespace shop return their name for /name, and the received
// request for other paths. The user of the kubeconfig may get in the namespace shop only.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "the `file` that says where, and who asks")
	flag.Parse()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		fail(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	// Many programs use protobuf for built-in types, and accept it for errors, too.
	for _, contentType := range []string{runtime.ContentTypeJSON, runtime.ContentTypeProtobuf} {
		config.ContentType = contentType
		if err := run(ctx, config); err != nil {
			fail(fmt.Errorf("with content type %s: %w", contentType, err))
		}
	}
	fmt.Println("client-go is served")
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func run(ctx context.Context, config *rest.Config) error {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	if err := answers(ctx, client); err != nil {
		return err
	}
	if err := refusals(ctx, client); err != nil {
		return err
	}
	stranger := rest.CopyConfig(config)
	stranger.BearerToken = "nobody's"
	client, err = kubernetes.NewForConfig(stranger)
	if err != nil {
		return err
	}
	_, err = client.CoreV1().Services("shop").ProxyGet("http", "web", "80", "/name", nil).DoRaw(ctx)
	return expect("a wrong token", err, apierrors.IsUnauthorized, "")
}

func answers(ctx context.Context, client kubernetes.Interface) error {
	services, pods := client.CoreV1().Services("shop"), client.CoreV1().Pods("shop")
	params := map[string]string{"q": "b c&d"}
	for _, each := range []struct {
		what string
		get  rest.ResponseWrapper
		want string
	}{
		{"a service by its port", services.ProxyGet("http", "web", "80", "/name", nil), "web-"},
		{"a service by its port's name", services.ProxyGet("", "web", "http", "name", nil), "web-"},
		{"a service over TLS", services.ProxyGet("https", "safe", "443", "/name", nil), "safe-1"},
		{"a service with parameters", services.ProxyGet("http", "web", "80", "/some/path", params), "GET /some/path?q=b+c%26d\n"},
		{"a pod", pods.ProxyGet("", "web-1", "", "/name", nil), "web-1"},
		{"a pod by its port", pods.ProxyGet("http", "web-2", "8080", "/name", nil), "web-2"},
		{"a pod over TLS", pods.ProxyGet("https", "safe-1", "8443", "/name", nil), "safe-1"},
	} {
		got, err := each.get.DoRaw(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", each.what, err)
		}
		if !strings.Contains(string(got), each.want) {
			return fmt.Errorf("%s answered %q, not %q", each.what, got, each.want)
		}
	}
	stream, err := pods.ProxyGet("", "web-3", "8080", "/name", nil).Stream(ctx)
	if err != nil {
		return fmt.Errorf("a pod as a stream: %w", err)
	}
	defer stream.Close()
	if got, err := io.ReadAll(stream); err != nil || string(got) != "web-3" {
		return fmt.Errorf("a pod as a stream answered %q, %w", got, err)
	}
	return nil
}

func refusals(ctx context.Context, client kubernetes.Interface) error {
	core := client.CoreV1()
	for _, each := range []struct {
		what string
		get  rest.ResponseWrapper
		is   func(error) bool
		says string
	}{
		{"another namespace's service", core.Services("default").ProxyGet("http", "web", "80", "/", nil), apierrors.IsForbidden,
			`services "http:web:80" is forbidden: User "system:serviceaccount:shop:caller" cannot get resource "services/proxy"`},
		{"another namespace's pod", core.Pods("default").ProxyGet("", "web-1", "", "/", nil), apierrors.IsForbidden,
			`pods "web-1" is forbidden`},
		{"a pod that is not there", core.Pods("shop").ProxyGet("", "nobody", "8080", "/", nil), apierrors.IsNotFound,
			`pods "nobody" not found`},
		{"a service that is not there", core.Services("shop").ProxyGet("http", "nobody", "80", "/", nil), apierrors.IsNotFound,
			`services "nobody" not found`},
		{"a service without endpoints", core.Services("shop").ProxyGet("http", "empty", "80", "/", nil), apierrors.IsServiceUnavailable,
			`no endpoints available for service "empty"`},
		{"a port that is closed", core.Pods("shop").ProxyGet("", "web-1", "9", "/", nil), apierrors.IsServiceUnavailable,
			"error trying to reach service: "},
		{"a scheme that is none", core.Pods("shop").ProxyGet("ftp", "web-1", "8080", "/", nil), apierrors.IsBadRequest,
			`invalid pod request "ftp:web-1:8080"`},
	} {
		// DoRaw keeps only the reason; Do decodes the Status.
		_, err := each.get.DoRaw(ctx)
		if err := expect(each.what, err, each.is, ""); err != nil {
			return err
		}
		request, full := each.get.(*rest.Request)
		if !full {
			return fmt.Errorf("ProxyGet gives a %T", each.get)
		}
		if err := expect(each.what, request.Do(ctx).Error(), each.is, each.says); err != nil {
			return err
		}
	}
	return nil
}

func expect(what string, err error, is func(error) bool, says string) error {
	if err == nil {
		return fmt.Errorf("%s is answered", what)
	}
	if !is(err) || !strings.Contains(err.Error(), says) {
		return fmt.Errorf("%s is refused as %q, reason %q; expected %q", what, err, apierrors.ReasonForError(err), says)
	}
	return nil
}
