// Command grpcserver is the server of the gRPC interoperability tests, over cleartext HTTP/2 or TLS. It prints events
// that the client cannot observe: arrivals and cancellations of calls. On SIGTERM it stops as servers do in a rolling
// update: it sends GOAWAY and exits after its calls have ended.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthgrpc "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
)

// Larger than any message of a test.
const maxMessage = 64 << 20

func main() {
	listen := flag.String("listen", "", "the `address` to serve on")
	certificate := flag.String("cert", "", "the certificate's `file`; cleartext HTTP/2 without")
	key := flag.String("key", "", "the key's `file`")
	age := flag.Duration("connection-age", 0, "how old a connection grows before it is closed by GOAWAY; 0: no limit")
	flag.Parse()

	options := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.ChainUnaryInterceptor(unary),
		grpc.ChainStreamInterceptor(stream),
		// Calls may continue after the GOAWAY without a limit.
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: *age}),
	}
	if *certificate != "" {
		tls, err := credentials.NewServerTLSFromFile(*certificate, *key)
		if err != nil {
			log.Fatal(err)
		}
		options = append(options, grpc.Creds(tls))
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer(options...)
	testgrpc.RegisterTestServiceServer(server, interop.NewTestServer())
	healthgrpc.RegisterHealthServer(server, health.NewServer())

	terminated, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() {
		<-terminated.Done()
		server.GracefulStop()
	}()
	fmt.Println("serving")
	if err := server.Serve(listener); err != nil {
		log.Fatal(err)
	}
	// Serve returns before the calls end.
	server.GracefulStop()
	fmt.Println("stopped")
}

var first sync.Once

func unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	arrived(ctx)
	return handler(ctx, request)
}

func stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	arrived(stream.Context())
	began := time.Now()
	err := handler(server, stream)
	// The server knows the deadline of a call, too, and may end it first.
	if cause := stream.Context().Err(); cause != nil {
		fmt.Println("cancelled", info.FullMethod, "after", time.Since(began), cause)
	}
	return err
}

// arrived prints that the first call has arrived, and reports credentials that must not reach the server.
func arrived(ctx context.Context) {
	first.Do(func() { fmt.Println("called") })
	headers, _ := metadata.FromIncomingContext(ctx)
	if credentials := headers.Get("authorization"); len(credentials) > 0 {
		fmt.Println("leaked", strings.Join(credentials, ", "))
	}
}
