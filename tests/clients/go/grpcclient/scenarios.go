package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
)

// Maximum duration of a call.
const patience = 20 * time.Second

// interoperate runs the gRPC interoperability tests. They log a failure and exit.
func interoperate(ctx context.Context, client testgrpc.TestServiceClient, connection grpc.ClientConnInterface) error {
	ctx, end := context.WithTimeout(ctx, time.Minute)
	defer end()
	for _, test := range []struct {
		name string
		run  func(context.Context, testgrpc.TestServiceClient, ...grpc.CallOption)
	}{
		{"empty_unary", interop.DoEmptyUnaryCall},
		{"large_unary", interop.DoLargeUnaryCall},
		{"client_streaming", interop.DoClientStreaming},
		{"server_streaming", interop.DoServerStreaming},
		{"ping_pong", interop.DoPingPong},
		{"empty_stream", interop.DoEmptyStream},
		{"custom_metadata", interop.DoCustomMetadata},
		{"status_code_and_message", interop.DoStatusCodeAndMessage},
		{"special_status_message", interop.DoSpecialStatusMessage},
		{"timeout_on_sleeping_server", interop.DoTimeoutOnSleepingServer},
		{"cancel_after_begin", interop.DoCancelAfterBegin},
		{"cancel_after_first_response", interop.DoCancelAfterFirstResponse},
	} {
		fmt.Println("interop", test.name)
		test.run(ctx, client)
	}
	fmt.Println("interop unimplemented_service")
	interop.DoUnimplementedService(ctx, testgrpc.NewUnimplementedServiceClient(connection))
	fmt.Println("interop unimplemented_method")
	if _, err := client.UnimplementedCall(ctx, &testgrpc.Empty{}); status.Code(err) != codes.Unimplemented {
		return fmt.Errorf("a method that the service lacks: %w", err)
	}
	return nil
}

// large sends and receives 16 MiB in one message each, more than any flow-control window.
func large(ctx context.Context, client testgrpc.TestServiceClient) error {
	const size = 16 << 20
	ctx, end := context.WithTimeout(ctx, patience)
	defer end()
	answer, err := client.UnaryCall(ctx, &testgrpc.SimpleRequest{
		ResponseSize: size,
		Payload:      &testgrpc.Payload{Body: bytes.Repeat([]byte{'x'}, size)},
	})
	if err != nil {
		return err
	}
	if got := len(answer.GetPayload().GetBody()); got != size {
		return fmt.Errorf("%d bytes came back", got)
	}
	return nil
}

// cancel cancels a call that waits in the server.
func cancel(ctx context.Context, client testgrpc.TestServiceClient) error {
	ctx, giveUp := context.WithTimeout(ctx, patience)
	defer giveUp()
	stream, err := conversation(ctx, client)
	if err != nil {
		return err
	}
	giveUp()
	if _, err := stream.Recv(); status.Code(err) != codes.Canceled {
		return fmt.Errorf("a cancelled call ended with %w", err)
	}
	return nil
}

// deadline lets the deadline of a call pass that waits in the server.
func deadline(ctx context.Context, client testgrpc.TestServiceClient) error {
	ctx, end := context.WithTimeout(ctx, 2*time.Second)
	defer end()
	stream, err := conversation(ctx, client)
	if err != nil {
		return err
	}
	if _, err := stream.Recv(); status.Code(err) != codes.DeadlineExceeded {
		return fmt.Errorf("a call past its deadline ended with %w", err)
	}
	return nil
}

// paced opens a call and sends a message for each line of standard input, until its end.
func paced(ctx context.Context, client testgrpc.TestServiceClient) error {
	stream, err := conversation(ctx, client)
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	for said := 1; ; said++ {
		fmt.Println("said", said)
		if !lines.Scan() {
			break
		}
		if err := exchange(stream, 1); err != nil {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	if _, err := stream.Recv(); err != io.EOF {
		return fmt.Errorf("the call ended with %w", err)
	}
	return nil
}

// calls makes concurrent calls of all kinds until the end of standard input. All must succeed.
func calls(ctx context.Context, client testgrpc.TestServiceClient) error {
	var stopped atomic.Bool
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stopped.Store(true)
	}()
	var made, failed atomic.Int64
	var workers sync.WaitGroup
	for worker := range 8 {
		workers.Go(func() {
			// A limit in case the test waits forever.
			for !stopped.Load() && made.Load() < 200_000 {
				if err := call(ctx, client, worker); err != nil {
					failed.Add(1)
					fmt.Println("failed", err)
				}
				if made := made.Add(1); made%100 == 0 {
					fmt.Println("made", made)
				}
			}
		})
	}
	workers.Wait()
	fmt.Println(made.Load(), "calls,", failed.Load(), "failed")
	if failed.Load() > 0 {
		return fmt.Errorf("%d of %d calls failed", failed.Load(), made.Load())
	}
	return nil
}

// call makes a unary call for most workers, and ten messages in both directions for every fourth.
func call(ctx context.Context, client testgrpc.TestServiceClient, worker int) error {
	ctx, end := context.WithTimeout(ctx, patience)
	defer end()
	size := rand.Int32N(4096)
	if worker%4 != 0 {
		answer, err := client.UnaryCall(ctx, &testgrpc.SimpleRequest{ResponseSize: size})
		if err != nil {
			return fmt.Errorf("unary: %w", err)
		}
		if got := len(answer.GetPayload().GetBody()); got != int(size) {
			return fmt.Errorf("unary: %d bytes of %d", got, size)
		}
		return nil
	}
	stream, err := client.FullDuplexCall(ctx)
	if err != nil {
		return fmt.Errorf("streaming: %w", err)
	}
	for range 10 {
		if err := exchange(stream, size); err != nil {
			return fmt.Errorf("streaming: %w", err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		return fmt.Errorf("streaming: %w", err)
	}
	if _, err := stream.Recv(); err != io.EOF {
		return fmt.Errorf("streaming: ended with %w", err)
	}
	return nil
}

// forbidden makes a call without permission.
func forbidden(ctx context.Context, client testgrpc.TestServiceClient) error {
	return refused(ctx, client, codes.PermissionDenied)
}

// gone makes a call to a service without endpoints.
func gone(ctx context.Context, client testgrpc.TestServiceClient) error {
	return refused(ctx, client, codes.Unavailable)
}

func refused(ctx context.Context, client testgrpc.TestServiceClient, code codes.Code) error {
	ctx, end := context.WithTimeout(ctx, patience)
	defer end()
	if _, err := client.EmptyCall(ctx, &testgrpc.Empty{}); status.Code(err) != code {
		return fmt.Errorf("expected %s: %w", code, err)
	}
	return nil
}

// conversation opens a stream and receives a first response.
func conversation(ctx context.Context, client testgrpc.TestServiceClient) (testgrpc.TestService_FullDuplexCallClient, error) {
	stream, err := client.FullDuplexCall(ctx)
	if err != nil {
		return nil, err
	}
	return stream, exchange(stream, 1)
}

func exchange(stream testgrpc.TestService_FullDuplexCallClient, size int32) error {
	request := &testgrpc.StreamingOutputCallRequest{ResponseParameters: []*testgrpc.ResponseParameters{{Size: size}}}
	if err := stream.Send(request); err != nil && err != io.EOF {
		return err
	}
	// Returns the error of a call that has ended.
	answer, err := stream.Recv()
	if err != nil {
		return err
	}
	if got := len(answer.GetPayload().GetBody()); got != int(size) {
		return fmt.Errorf("%d bytes of %d", got, size)
	}
	return nil
}
