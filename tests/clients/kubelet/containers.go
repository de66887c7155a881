package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// ExecInContainer runs a command of the host in the folder of the pod. A terminal is a pipe.
func (p *pod) ExecInContainer(ctx context.Context, name, _, container string, arguments []string, in io.Reader, out,
	errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	log.Printf("exec %q in %s of %s", arguments, container, name)
	if len(arguments) == 0 {
		return errors.New("the command is empty")
	}
	go drain(resize)
	directory := filepath.Join(p.folder, "files")
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return err
	}
	command := exec.CommandContext(ctx, arguments[0], arguments[1:]...)
	command.Dir = directory
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	command.Stdout = out
	command.Stderr = errs
	if tty {
		command.Stderr = out
	}
	// Not `command.Stdin`: Wait would wait for the client to close its input.
	var input io.WriteCloser
	if in != nil {
		var err error
		if input, err = command.StdinPipe(); err != nil {
			return err
		}
	}
	if err := command.Start(); err != nil {
		return fmt.Errorf("cannot start %q: %w", arguments[0], err)
	}
	if in != nil {
		go func() {
			_, _ = io.Copy(input, in)
			_ = input.Close()
		}()
	}
	err := command.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return utilexec.CodeExitError{Err: err, Code: exit.ExitCode()}
	}
	return err
}

// AttachContainer echoes the input of the client. Without input it follows the log of the container.
func (p *pod) AttachContainer(ctx context.Context, name, _, container string, in io.Reader, out, _ io.WriteCloser,
	_ bool, resize <-chan remotecommand.TerminalSize) error {
	log.Printf("attach to %s of %s", container, name)
	go drain(resize)
	if in != nil {
		_, err := io.Copy(out, in)
		return err
	}
	file, err := os.Open(p.log(container))
	if err != nil {
		return err
	}
	defer file.Close()
	return follow(ctx, file, out)
}

func drain(resize <-chan remotecommand.TerminalSize) {
	for range resize {
	}
}
