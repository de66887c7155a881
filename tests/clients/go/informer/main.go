// Command informer keeps a cache of the ConfigMaps of a namespace with an informer of client-go, as controllers do. When
// its standard input ends, it waits until the cache equals a list from another server, and exits with 0. Standard error
// has client-go's own messages.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

// timeout is the maximum time until the first list, and until the cache equals the list of the other server.
const timeout = time.Minute

func main() {
	klog.InitFlags(nil)
	kubeconfig := flag.String("kubeconfig", "", "the `file` with the server of the informer")
	truth := flag.String("truth", "", "the `file` with the server that the cache is compared with")
	namespace := flag.String("namespace", "", "the `name` of the namespace")
	flag.Parse()
	if err := run(*kubeconfig, *truth, *namespace); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func connect(kubeconfig string) (*kubernetes.Clientset, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(config)
}

func run(kubeconfig, truth, namespace string) error {
	client, err := connect(kubeconfig)
	if err != nil {
		return err
	}
	other, err := connect(truth)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(namespace))
	informer := factory.Core().V1().ConfigMaps().Informer()
	var events atomic.Int64
	count := func() { events.Add(1) }
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { count() },
		UpdateFunc: func(any, any) { count() },
		DeleteFunc: func(any) { count() },
	}); err != nil {
		return err
	}
	factory.Start(ctx.Done())
	first, stop := context.WithTimeout(ctx, timeout)
	defer stop()
	if !cache.WaitForCacheSync(first.Done(), informer.HasSynced) {
		return fmt.Errorf("no list within %v", timeout)
	}
	fmt.Println("synced")
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	for deadline := time.Now().Add(timeout); ; time.Sleep(100 * time.Millisecond) {
		list, err := other.CoreV1().ConfigMaps(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		want, have := map[string]string{}, map[string]string{}
		for _, object := range list.Items {
			want[object.Name] = object.ResourceVersion
		}
		for _, object := range informer.GetStore().List() {
			object := object.(metav1.Object)
			have[object.GetName()] = object.GetResourceVersion()
		}
		if maps.Equal(want, have) {
			fmt.Printf("the cache of %d objects is equal after %d events\n", len(have), events.Load())
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the cache has %v, the server %v", have, want)
		}
	}
}
