// Probe is what the lab's tests run in a pod: it looks up the names that it
// is given, prints the answers as one line each and serves until it is ended.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	for _, name := range os.Args[1:] {
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
