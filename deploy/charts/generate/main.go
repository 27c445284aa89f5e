// Command generate writes the files that are made of the charts. It runs in
// the directory of package charts.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/lanyard-id/lanyard/deploy/charts"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	for _, name := range charts.All() {
		if err := charts.WriteCopies(name); err != nil {
			return err
		}
		if err := readme(name); err != nil {
			return err
		}
		c, err := charts.Load(name)
		if err != nil {
			return err
		}
		manifests, err := charts.Plain(ctx, c)
		if err != nil {
			return err
		}
		for file, content := range manifests {
			if err := charts.Write(charts.PlainPath(file), content); err != nil {
				return err
			}
		}
	}
	return nil
}

func readme(dir string) error {
	name := filepath.Join(dir, "README.md")
	old, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	values, err := os.ReadFile(filepath.Join(dir, "values.yaml"))
	if err != nil {
		return err
	}
	text, err := charts.Readme(old, values)
	if err != nil {
		return err
	}
	return charts.Write(name, text)
}
