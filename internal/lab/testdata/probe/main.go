// Probe is what the lab's tests run in a pod: it prints the files, URLs,
// $VARIABLES and host names that it is given with what they stand for, and
// serves until it is ended.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	for _, name := range os.Args[1:] {
		if file, err := os.ReadFile(name); err == nil {
			fmt.Println(name, strings.TrimSpace(string(file)))
			continue
		}
		if variable, ok := strings.CutPrefix(name, "$"); ok {
			fmt.Println(name, os.Getenv(variable))
			continue
		}
		if strings.HasPrefix(name, "http://") {
			fmt.Println(name, get(ctx, name))
			continue
		}
		addrs, err := net.DefaultResolver.LookupHost(ctx, name)
		var d *net.DNSError
		switch {
		case err == nil:
			fmt.Println(name, addrs)
		case errors.As(err, &d) && d.IsNotFound:
			fmt.Println(name, "does not exist")
		default:
			fmt.Println(name, err)
		}
	}
	hostname, err := os.Hostname()
	fmt.Println("hostname", hostname, err)
	server := &http.Server{Addr: ":8080", ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, r.RemoteAddr)
	})}
	go func() {
		<-ctx.Done()
		server.Close()
	}()
	fmt.Println(server.ListenAndServe())
}

func get(ctx context.Context, url string) string {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err.Error()
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err.Error()
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err.Error()
	}
	return string(body)
}
