// Command dockerfile runs the checks of `docker build --check` without a Docker engine, and looks at the build context
// as .dockerignore leaves it.
//
//	dockerfile [-context DIR] DOCKERFILE
//
// It exits with 1 where there is a finding. With -context, what would be sent to the builder is copied to DIR.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/opencontainers/go-digest"
)

// Stages are chosen by TARGETARCH, so each platform is a Dockerfile of its own.
var targets = []string{"linux/amd64", "linux/arm64"}

// A context larger than this has something in it that no build needs.
const maxContextBytes = 16 << 20

func main() {
	export := flag.String("context", "", "copy the build context to this folder")
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	findings, err := lint(flag.Arg(0), *export)
	for _, finding := range findings {
		fmt.Fprintln(os.Stderr, finding)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if err != nil || len(findings) > 0 {
		os.Exit(1)
	}
}

func lint(path, export string) ([]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	findings, err := check(path, text)
	if err != nil {
		return findings, err
	}
	root := filepath.Dir(path)
	files, err := buildContext(root)
	if err != nil {
		return findings, err
	}
	copied, err := copies(path, text, root, files)
	findings = append(findings, copied...)
	if err != nil {
		return findings, err
	}
	unstripped, err := unstripped(path, text)
	findings = append(findings, unstripped...)
	if err != nil {
		return findings, err
	}
	size, err := total(root, files)
	if err != nil {
		return findings, err
	}
	if size > maxContextBytes {
		findings = append(findings, fmt.Sprintf("%s: the build context has %d bytes in %d files, more than %d: "+
			"what does .dockerignore let in?", path, size, len(files), maxContextBytes))
	}
	if export != "" {
		err = copyTo(export, root, files)
	}
	return findings, err
}

// check runs BuildKit's checks for each target platform and removes duplicate findings.
func check(path string, text []byte) ([]string, error) {
	var findings []string
	seen := map[string]bool{}
	source := llb.NewSourceMap(nil, path, "Dockerfile", text)
	source.Definition = &llb.Definition{}
	for _, target := range targets {
		platform, err := platforms.Parse(target)
		if err != nil {
			return nil, err
		}
		results, err := dockerfile2llb.DockerfileLint(context.Background(), text, dockerfile2llb.ConvertOpt{
			SourceMap:      source,
			TargetPlatform: &platform,
			MetaResolver:   noImages{},
		})
		if err != nil {
			return nil, err
		}
		for _, warning := range results.Warnings {
			line := int32(0)
			if ranges := warning.Location.GetRanges(); len(ranges) > 0 {
				line = ranges[0].Start.Line
			}
			finding := fmt.Sprintf("%s:%d %s: %s", path, line, warning.RuleName, warning.Detail)
			if !seen[finding] {
				seen[finding] = true
				findings = append(findings, finding)
			}
		}
		if results.Error != nil {
			findings = append(findings, fmt.Sprintf("%s (%s): %s", path, target, results.Error.Message))
		}
	}
	return findings, nil
}

// noImages stands in for the registries: every base image is there and sets nothing.
type noImages struct{}

func (noImages) ResolveImageConfig(_ context.Context, ref string, _ sourceresolver.Opt) (
	string, digest.Digest, []byte, error,
) {
	return ref, "", []byte(`{"os":"linux","config":{}}`), nil
}

// buildContext lists the files under root, relative to it, that .dockerignore lets in.
func buildContext(root string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(root, ".dockerignore"))
	if err != nil {
		return nil, err
	}
	patterns, err := ignorefile.ReadAll(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	matcher, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, err
	}
	var files []string
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil || name == "." {
			return err
		}
		ignored, err := matcher.MatchesOrParentMatches(name)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			// target/ alone has a hundred thousand files. A folder with an exception below it must be walked.
			if ignored && !exceptionBelow(matcher, name) {
				return filepath.SkipDir
			}
			return nil
		}
		if !ignored {
			files = append(files, name)
		}
		return nil
	})
	return files, err
}

func exceptionBelow(matcher *patternmatcher.PatternMatcher, folder string) bool {
	for _, pattern := range matcher.Patterns() {
		if pattern.Exclusion() && strings.HasPrefix(pattern.String()+"/", folder+"/") {
			return true
		}
	}
	return false
}

// copies finds sources of COPY and ADD that the context does not have.
func copies(path string, text []byte, root string, files []string) ([]string, error) {
	parsed, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	stages, _, err := instructions.Parse(parsed.AST, nil)
	if err != nil {
		return nil, err
	}
	var findings []string
	for _, stage := range stages {
		for _, command := range stage.Commands {
			var sources []string
			switch command := command.(type) {
			case *instructions.CopyCommand:
				if command.From == "" {
					sources = command.SourcePaths
				}
			case *instructions.AddCommand:
				sources = command.SourcePaths
			}
			for _, source := range sources {
				found, err := inContext(source, files)
				if err != nil {
					return findings, err
				}
				if !found {
					findings = append(findings, fmt.Sprintf("%s:%d %s is not in the build context of %s: no such file, "+
						"or .dockerignore leaves it out", path, command.Location()[0].Start.Line, source, root))
				}
			}
		}
	}
	return findings, nil
}

// unstripped finds files that the image takes from a build stage that does not remove their debug information.
func unstripped(path string, text []byte) ([]string, error) {
	parsed, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	stages, _, err := instructions.Parse(parsed.AST, nil)
	if err != nil {
		return nil, err
	}
	strips := func(stage, file string) bool {
		for _, candidate := range stages {
			for _, command := range candidate.Commands {
				run, ok := command.(*instructions.RunCommand)
				line := ""
				if ok {
					line = strings.Join(run.CmdLine, " ")
				}
				if candidate.Name == stage && strings.Contains(line, "--strip-debug") && strings.HasSuffix(line, " "+file) {
					return true
				}
			}
		}
		return false
	}
	var findings []string
	for _, command := range stages[len(stages)-1].Commands {
		copied, ok := command.(*instructions.CopyCommand)
		if !ok || copied.From == "" {
			continue
		}
		for _, file := range copied.SourcePaths {
			if !strips(copied.From, file) {
				findings = append(findings, fmt.Sprintf("%s:%d %s has its debug information: no RUN of the stage %s "+
					"ends with --strip-debug … %s", path, copied.Location()[0].Start.Line, file, copied.From, file))
			}
		}
	}
	return findings, nil
}

func inContext(source string, files []string) (bool, error) {
	source = strings.TrimPrefix(filepath.Clean(source), "/")
	for _, file := range files {
		for name := file; name != "."; name = filepath.Dir(name) {
			matched, err := filepath.Match(source, name)
			if matched || err != nil {
				return matched, err
			}
		}
	}
	return source == "." && len(files) > 0, nil
}

func total(root string, files []string) (int64, error) {
	var size int64
	for _, file := range files {
		info, err := os.Stat(filepath.Join(root, file))
		if err != nil {
			return 0, err
		}
		size += info.Size()
	}
	return size, nil
}

func copyTo(folder, root string, files []string) error {
	err := os.RemoveAll(folder)
	for _, file := range files {
		text, readErr := os.ReadFile(filepath.Join(root, file))
		to := filepath.Join(folder, file)
		err = errors.Join(err, readErr, os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, text, 0o644))
	}
	return err
}
