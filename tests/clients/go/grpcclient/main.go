// Command grpcclient calls a server of the gRPC interoperability tests through the proxy subresource, with a token and
// with the path of the subresource before the name of each method. It exits with 0 if all results are as expected.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
)

// Same value as in the server.
const maxMessage = 64 << 20

func main() {
	address := flag.String("address", "", "`host:port` of the proxy")
	ca := flag.String("ca", "", "the `file` with its certificate authority")
	name := flag.String("server-name", "localhost", "the `name` that its certificate must hold")
	token := flag.String("token-file", "", "the `file` with the caller's token")
	prefix := flag.String("prefix", "", "the `path` before the names of methods, up to and with /proxy")
	flag.Parse()

	trust, err := credentials.NewClientTLSFromFile(*ca, *name)
	if err != nil {
		fail(err)
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(trust),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		// Retries would hide failed calls. Calls that were never sent are retried anyway.
		grpc.WithDisableRetry(),
	}
	if *token != "" {
		text, err := os.ReadFile(*token)
		if err != nil {
			fail(err)
		}
		options = append(options, grpc.WithPerRPCCredentials(bearer(strings.TrimSpace(string(text)))))
	}
	connection, err := grpc.NewClient(*address, options...)
	if err != nil {
		fail(err)
	}
	defer connection.Close()
	through := &subresource{connection, *prefix}
	client := testgrpc.NewTestServiceClient(through)

	scenarios := map[string]func(context.Context, testgrpc.TestServiceClient) error{
		"interop": func(ctx context.Context, client testgrpc.TestServiceClient) error {
			return interoperate(ctx, client, through)
		},
		"large":     large,
		"cancel":    cancel,
		"deadline":  deadline,
		"paced":     paced,
		"calls":     calls,
		"forbidden": forbidden,
		"gone":      gone,
	}
	for _, name := range flag.Args() {
		scenario, known := scenarios[name]
		if !known {
			fail(fmt.Errorf("no scenario %q", name))
		}
		if err := scenario(context.Background(), client); err != nil {
			fail(fmt.Errorf("%s: %w", name, err))
		}
		fmt.Println("ok", name)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// subresource prepends the path of a proxy to the names of methods, which is all that a gRPC client needs.
type subresource struct {
	grpc.ClientConnInterface
	prefix string
}

func (s *subresource) Invoke(ctx context.Context, method string, in, out any, options ...grpc.CallOption) error {
	return s.ClientConnInterface.Invoke(ctx, s.prefix+method, in, out, options...)
}

func (s *subresource) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, options ...grpc.CallOption) (grpc.ClientStream, error) {
	return s.ClientConnInterface.NewStream(ctx, desc, s.prefix+method, options...)
}

// bearer is a token as call credentials.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	if b == "" {
		return nil, errors.New("the token is empty")
	}
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }
