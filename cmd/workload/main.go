// Command workload is an ordinary program of a customer, as the demo runs it
// in pods: it gets an access token, asks for a second one, and reads a Key
// Vault secret. It knows nothing of Lanyard.
//
//	workload imds      asks the instance metadata service, as curl in a script would
//	workload sdk       uses azidentity.DefaultAzureCredential without any option
//	workload watch     asks the instance metadata service again and again and tells of each answer
//	workload exchange  gives Entra the token of its service account again and again and tells of each answer
//
// But for watch and exchange, it prints one line of JSON (see report) and exits with 0 if the secret was
// read, 1 if not and 2 if it was called wrongly. It never prints a token.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

const metadataURL = "http://169.254.169.254/metadata/identity/oauth2/token/"

const usage = `usage: workload imds|sdk --vault URL --secret NAME [flags]
       workload watch|exchange [flags]

  imds      get the token from the instance metadata service, as a script would
  sdk       get the token with DefaultAzureCredential
  watch     ask the metadata service for a token again and again, one line of JSON each
  exchange  exchange the service account's token again and again, one line of JSON each

workload VERB --help lists the flags.
`

// options are what both verbs take; URL and Resource only imds.
type options struct {
	URL, Resource string
	Vault, Secret string
	Wait          time.Duration // how long to go on asking for the first token
	Pause         time.Duration // between two attempts
	Print, Stay   bool

	stderr io.Writer // tells of attempts
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 || args[0] == "-h" || args[0] == "--help" {
		fmt.Fprint(stderr, usage)
		return 2
	}
	switch args[0] {
	case "watch":
		return watch(ctx, args[1:], stdout, stderr)
	case "exchange":
		return exchange(ctx, args[1:], stdout, stderr)
	}
	o := options{stderr: stderr}
	flags := flag.NewFlagSet("workload "+args[0], flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.Vault, "vault", "", "URL of the Key Vault, such as https://NAME.vault.azure.net (required)")
	flags.StringVar(&o.Secret, "secret", "", "name of the secret (required)")
	flags.DurationVar(&o.Wait, "wait", 20*time.Second, "how long to go on asking for the first token; 0 asks once")
	flags.DurationVar(&o.Pause, "pause", time.Second, "time between two attempts")
	flags.BoolVar(&o.Print, "print-secret", false, "print the secret's value")
	flags.BoolVar(&o.Stay, "stay", false, "stay until a signal comes, after the line is printed")
	var work func(context.Context, options, *report) error
	switch args[0] {
	case "imds":
		flags.StringVar(&o.URL, "url", metadataURL, "token endpoint of the metadata service")
		flags.StringVar(&o.Resource, "resource", "https://vault.azure.net", "resource to get a token for")
		work = imds
	case "sdk":
		o.Resource = "https://vault.azure.net"
		work = sdk
	default:
		fmt.Fprintf(stderr, "workload: unknown verb %q\n%s", args[0], usage)
		return 2
	}
	if err := flags.Parse(args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if o.Vault == "" || o.Secret == "" || flags.NArg() > 0 {
		fmt.Fprintf(stderr, "workload: --vault and --secret are required, and every setting is a flag\n%s", usage)
		return 2
	}

	r := &report{Resource: o.Resource, started: time.Now()}
	err := work(ctx, o, r)
	r.OK = err == nil
	if err != nil {
		r.Error = err.Error()
		var refusal *refusal
		if errors.As(err, &refusal) {
			r.Status = refusal.status
		}
	}
	if err := json.NewEncoder(stdout).Encode(r); err != nil {
		fmt.Fprintln(stderr, "workload:", err)
		return 1
	}
	if o.Stay {
		<-ctx.Done()
	}
	if !r.OK {
		return 1
	}
	return 0
}

// attempt calls get until it yields a token or o.Wait is over, as the loop in
// a start script does, and tells of each failure.
func attempt(ctx context.Context, o options, get func(context.Context) (string, error)) (string, error) {
	deadline := time.Now().Add(o.Wait)
	for n := 1; ; n++ {
		token, err := get(ctx)
		if err == nil {
			return token, nil
		}
		fmt.Fprintf(o.stderr, "attempt %d: %v\n", n, err)
		if time.Now().Add(o.Pause).After(deadline) {
			return "", err
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("interrupted: %w", err)
		case <-time.After(o.Pause):
		}
	}
}
