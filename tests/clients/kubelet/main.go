// Kubelet of the end-to-end tests: the part that kube-apiserver reaches for exec, attach, port-forward and logs. The
// protocols are those of Kubernetes' own streaming server; containers are commands and files of the test.
//
// A pod is a folder DIR/NAMESPACE_POD, which need not exist:
//
//	address         where port-forward connects to, 127.0.0.1 without the file
//	CONTAINER.log   output of a container, which logs and attach follow
//	files/          working directory of exec
//
// Every request and every connection of a port-forward is printed as a line.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

const (
	idleTimeout     = 4 * time.Hour
	creationTimeout = remotecommand.DefaultStreamCreationTimeout
	pollInterval    = 20 * time.Millisecond
)

func main() {
	listen := flag.String("listen", "127.0.0.1:10250", "address to listen on")
	certificate := flag.String("cert", "", "file of the serving certificate")
	key := flag.String("key", "", "file of the key of the serving certificate")
	clientCA := flag.String("client-ca", "", "file of the CA of client certificates, which are required")
	folder := flag.String("dir", ".", "folder of the pods")
	flag.Parse()
	log.SetOutput(os.Stdout)
	log.SetFlags(0)
	if err := run(*listen, *certificate, *key, *clientCA, *folder); err != nil {
		log.Fatal(err)
	}
}

func run(listen, certificate, key, clientCA, folder string) error {
	pem, err := os.ReadFile(clientCA)
	if err != nil {
		return err
	}
	clients := x509.NewCertPool()
	if !clients.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s contains no certificate", clientCA)
	}
	mux := http.NewServeMux()
	node := &node{folder: folder}
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		mux.HandleFunc(method+" /exec/{namespace}/{pod}/{container}", node.exec)
		mux.HandleFunc(method+" /attach/{namespace}/{pod}/{container}", node.attach)
		mux.HandleFunc(method+" /portForward/{namespace}/{pod}", node.portForward)
	}
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", node.logs)
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	log.Printf("listening on %s", listener.Addr())
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			log.Printf("%s %s upgrade=%q", r.Method, r.URL.RequestURI(), r.Header.Get("Upgrade"))
			mux.ServeHTTP(w, r)
		}),
		// Upgrades are a feature of HTTP/1.1.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		TLSConfig: &tls.Config{
			ClientCAs:  clients,
			ClientAuth: tls.RequireAndVerifyClientCert,
		},
	}
	return server.ServeTLS(listener, certificate, key)
}

type node struct {
	folder string
}

func (n *node) exec(w http.ResponseWriter, r *http.Request) {
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	pod := n.pod(r)
	remotecommand.ServeExec(w, r, pod, r.PathValue("pod"), "", r.PathValue("container"), r.URL.Query()["command"],
		options, idleTimeout, creationTimeout, remotecommand.SupportedStreamingProtocols)
}

func (n *node) attach(w http.ResponseWriter, r *http.Request) {
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	pod := n.pod(r)
	remotecommand.ServeAttach(w, r, pod, r.PathValue("pod"), "", r.PathValue("container"), options, idleTimeout,
		creationTimeout, remotecommand.SupportedStreamingProtocols)
}

func (n *node) portForward(w http.ResponseWriter, r *http.Request) {
	options, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	name := r.PathValue("pod")
	portforward.ServePortForward(w, r, n.pod(r), name, "", options, idleTimeout, creationTimeout,
		portforward.SupportedProtocols)
	log.Printf("end of port-forward to %s", name)
}

// logs serves the file of a container: its last lines, and with follow all that is appended to it.
func (n *node) logs(w http.ResponseWriter, r *http.Request) {
	file, err := os.Open(n.pod(r).log(r.PathValue("container")))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	defer file.Close()
	text, err := io.ReadAll(file)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	query := r.URL.Query()
	if lines, err := strconv.Atoi(query.Get("tailLines")); err == nil {
		text = tail(text, lines)
	}
	w.Header().Set("Content-Type", "text/plain")
	if _, err := (flushed{w}).Write(text); err != nil || query.Get("follow") != "true" {
		return
	}
	_ = follow(r.Context(), file, flushed{w})
}

func tail(text []byte, lines int) []byte {
	parts := strings.SplitAfter(string(text), "\n")
	if parts[len(parts)-1] == "" {
		parts = parts[:len(parts)-1]
	}
	return []byte(strings.Join(parts[max(0, len(parts)-lines):], ""))
}

// flushed sends each write to the client immediately.
type flushed struct {
	http.ResponseWriter
}

func (f flushed) Write(bytes []byte) (int, error) {
	n, err := f.ResponseWriter.Write(bytes)
	if flusher, ok := f.ResponseWriter.(http.Flusher); ok {
		flusher.Flush()
	}
	return n, err
}

// follow copies what is appended to a file until the context ends.
func follow(ctx context.Context, file *os.File, to io.Writer) error {
	for {
		if _, err := io.Copy(to, file); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollInterval):
		}
	}
}

func (n *node) pod(r *http.Request) *pod {
	name := r.PathValue("namespace") + "_" + r.PathValue("pod")
	return &pod{folder: filepath.Join(n.folder, name)}
}

// pod implements the executor, attacher and port forwarder of the streaming server.
type pod struct {
	folder string
}

func (p *pod) log(container string) string {
	return filepath.Join(p.folder, container+".log")
}

// PortForward connects to the port of the pod. Each side is closed when the other one has ended.
func (p *pod) PortForward(ctx context.Context, name, _ string, port int32, stream io.ReadWriteCloser) error {
	host := "127.0.0.1"
	if address, err := os.ReadFile(filepath.Join(p.folder, "address")); err == nil {
		host = strings.TrimSpace(string(address))
	}
	address := net.JoinHostPort(host, strconv.Itoa(int(port)))
	log.Printf("dial %s for %s", address, name)
	defer log.Printf("close %s for %s", address, name)
	var dialer net.Dialer
	connection, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("failed to connect to localhost:%d inside the pod: %w", port, err)
	}
	backend, ok := connection.(*net.TCPConn)
	if !ok {
		return errors.New("the connection is not TCP")
	}
	defer backend.Close()
	go func() {
		// Ends with the half-close or the reset of the client.
		_, _ = io.Copy(backend, stream)
		_ = backend.CloseWrite()
	}()
	if _, err = io.Copy(stream, backend); err != nil {
		return fmt.Errorf("failed to copy from localhost:%d inside the pod: %w", port, err)
	}
	return nil
}
