package issuer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/lanyard-id/lanyard/cmd/lanyard/cli"
	"github.com/lanyard-id/lanyard/internal/issuer"
)

func serveCommand(self string) *cobra.Command {
	var from source
	var listen, dir, cert, key string
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve the issuer's documents",
		Long: `Answers GET and HEAD for the two documents below the issuer's path, and for
/healthz, and for nothing else. They come from a cluster, from PEM files or from a
directory that "lanyard issuer publish" has filled, and are looked at again every
--interval. When the API servers are away, the last good ones are served.

With --tls-cert-file and --tls-private-key-file it speaks HTTPS, and takes renewed
files without a restart. Without them it speaks plain HTTP, for a load balancer or
ingress that speaks HTTPS to the internet: Entra takes nothing else.`,
		Example: examples(self, `  lanyard issuer serve --listen :8080
  lanyard issuer serve --listen :443 --tls-cert-file tls.crt --tls-private-key-file tls.key --directory /srv/oidc`),
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case (cert == "") != (key == ""):
				return cli.Usage("--tls-cert-file and --tls-private-key-file go together")
			case dir != "" && len(from.files) > 0:
				return cli.Usage("--directory and --public-keys exclude each other")
			case interval < time.Second:
				return cli.Usage("--interval is a second at least")
			}
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			s := &issuer.Server{Interval: interval, Logger: log}
			if dir != "" {
				s.Source = issuer.Folder{Directory: issuer.Directory{Path: dir}}
				if from.issuer != "" {
					s.Source = expected{s.Source, from.issuer}
				}
			} else {
				var err error
				if s.Source, err = from.documents(); err != nil {
					return err
				}
			}
			l, err := (&net.ListenConfig{}).Listen(cmd.Context(), "tcp", listen)
			if err != nil {
				return err
			}
			if cert != "" {
				pair := &certificate{cert: cert, key: key}
				if _, err := pair.get(nil); err != nil {
					l.Close()
					return err
				}
				l = tls.NewListener(l, &tls.Config{GetCertificate: pair.get, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}})
			}
			log.Info("serving the issuer's documents", "address", l.Addr().String(), "tls", cert != "")
			return serve(cmd.Context(), l, s)
		},
	}
	from.addCluster(cmd)
	from.addFiles(cmd)
	f := cmd.Flags()
	f.StringVar(&listen, "listen", ":8080", "`address` to listen on")
	f.StringVar(&dir, "directory", "", "`directory` with the documents, instead of asking a cluster")
	f.StringVar(&cert, "tls-cert-file", "", "PEM `file` of the certificate and its chain")
	f.StringVar(&key, "tls-private-key-file", "", "PEM `file` of its key")
	f.DurationVar(&interval, "interval", time.Minute, "between two looks at the source")
	_ = cmd.MarkFlagDirname("directory") // these fail only for flags that do not exist
	_ = cmd.MarkFlagFilename("tls-cert-file")
	_ = cmd.MarkFlagFilename("tls-private-key-file")
	return cmd
}

// serve answers until ctx ends.
func serve(ctx context.Context, l net.Listener, s *issuer.Server) error {
	server := &http.Server{
		Handler: s, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 15 * time.Second, WriteTimeout: 15 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.Run(ctx) })
	g.Go(func() error {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return errors.Join(server.Shutdown(end), server.Close())
	})
	return g.Wait()
}

// A certificate is read anew when its files change. A renewal that cannot be
// read leaves the old one in use.
type certificate struct {
	cert, key string

	mu     sync.Mutex
	stamps [2]time.Time
	last   *tls.Certificate
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var stamps [2]time.Time
	for i, name := range []string{c.cert, c.key} {
		if info, err := os.Stat(name); err == nil {
			stamps[i] = info.ModTime()
		}
	}
	if c.last != nil && stamps == c.stamps {
		return c.last, nil
	}
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		if c.last != nil {
			return c.last, nil // between the writes of the two files
		}
		return nil, fmt.Errorf("reading the certificate: %w", err)
	}
	c.last, c.stamps = &pair, stamps
	return c.last, nil
}
