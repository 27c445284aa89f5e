package main

import (
	"cmp"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/webhook/mutation"
)

// settings are the flags and the environment.
type settings struct {
	mutation.Config

	kubeconfig                                    string
	webhookAddr, healthAddr, metricsAddr          string
	certDir, namespace, configuration, servedName string
	disableRotation, version                      bool
	tlsMin                                        uint16
	level                                         slog.Level
	shutdownDelay                                 time.Duration

	doctor           string // "off", "report" or "evict"
	doctorInterval   time.Duration
	doctorEvictStale bool

	notes []string // what the administrator should change one day
}

func parse(args []string, getenv func(string) string, stderr io.Writer) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("webhook", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&s.Audience, "audience", "", "audience of the projected token (default "+workloadidentity.Audience+")")
	flags.StringVar(&s.AuthorityHost, "authority-host", "", "AZURE_AUTHORITY_HOST for the pods (default: the one of AZURE_ENVIRONMENT)")
	layout := flags.String("token-layout", string(mutation.LayoutV16), `where the token is in a container: "v1.6", or "legacy" as before v1.6 and on AKS`)
	flags.StringVar(&s.webhookAddr, "webhook-addr", ":9443", "address for the API server's calls")
	flags.StringVar(&s.healthAddr, "health-addr", ":9440", "address of /healthz and /readyz")
	flags.StringVar(&s.metricsAddr, "metrics-addr", ":8095", `address of /metrics; "0" serves none`)
	backend := flags.String("metrics-backend", "prometheus", "prometheus is the only one")
	flags.StringVar(&s.certDir, "webhook-cert-dir", "/certs", "directory of tls.crt and tls.key, read only with --disable-cert-rotation")
	flags.BoolVar(&s.disableRotation, "disable-cert-rotation", false, "serve the certificate of --webhook-cert-dir and leave the Secret and the caBundle alone")
	minimum := flags.String("tls-min-version", "1.3", "lowest TLS version to accept: 1.2 or 1.3; 1.0 and 1.1 mean 1.2")
	flags.StringVar(&s.Endpoint.Suffix, "custom-token-endpoint-annotation-suffix", "", "pods with the annotation "+workloadidentity.AnnotationUsePrefix+"`suffix` use the custom token endpoint that AZURE_KUBERNETES_... describe")
	flags.StringVar(&s.Endpoint.Audience, "custom-token-endpoint-audience", "", "audience of those pods' projected token")
	resources := flags.String("proxy-resources", "", "`JSON` of the resources of the token proxy's containers, as in a pod (default: none, as in v1.6)")
	flags.StringVar(&s.configuration, "webhook-configuration", workloadidentity.WebhookConfiguration, "name of the MutatingWebhookConfiguration to keep the caBundle of")
	flags.StringVar(&s.servedName, "serving-names", "", "comma-separated host names and addresses for the serving certificate (default: the Service's name)")
	flags.StringVar(&s.kubeconfig, "kubeconfig", "", "kubeconfig file (default: the pod's service account)")
	level := flags.String("log-level", "", "debug, info, warn or error; trace and all mean debug (default info)")
	flags.DurationVar(&s.shutdownDelay, "shutdown-delay", 5*time.Second, "how long to serve on after SIGTERM, no longer ready")
	flags.StringVar(&s.doctor, "doctor", "off", "look for pods that run without the mutation they ask for: off, report (an Event on the pod), or evict (as well, where a controller makes them again)")
	flags.DurationVar(&s.doctorInterval, "doctor-interval", 10*time.Minute, "how often the doctor looks at every pod; changes it sees at once")
	flags.BoolVar(&s.doctorEvictStale, "doctor-evict-stale", false, "with --doctor=evict, evict also pods whose service account names another client id now")
	flags.BoolVar(&s.version, "version", false, "print the version as JSON and exit")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	if flags.NArg() > 0 {
		return s, fmt.Errorf("unexpected argument %q: every setting is a flag, see --help", flags.Arg(0))
	}
	s.Layout, s.TenantID, s.namespace = mutation.Layout(*layout), getenv("AZURE_TENANT_ID"), getenv("POD_NAMESPACE")
	if s.namespace == "" {
		s.namespace = workloadidentity.Namespace
	}
	if s.servedName == "" {
		s.servedName = workloadidentity.WebhookService + "." + s.namespace + ".svc"
	}
	if s.version {
		return s, nil
	}
	var errs []error
	if s.AuthorityHost == "" {
		var err error
		s.AuthorityHost, err = mutation.AuthorityHost(getenv("AZURE_ENVIRONMENT"))
		errs = append(errs, err)
	}
	errs = append(errs, s.readProxy(*resources, *level, getenv), s.readEndpoint(getenv))
	if s.AuthorityHost != "" {
		errs = append(errs, s.Validate())
	}
	errs = append(errs, s.checkDoctor())
	var err error
	if s.servedName, err = servingNames(s.servedName); err != nil {
		errs = append(errs, err)
	}
	if *backend != "prometheus" {
		errs = append(errs, fmt.Errorf("--metrics-backend %q is unknown: use prometheus", *backend))
	}
	switch *minimum {
	case "1.0", "1.1":
		s.tlsMin = tls.VersionTLS12
		s.notes = append(s.notes, "--tls-min-version="+*minimum+" means 1.2: every API server speaks it, and TLS below is broken (RFC 8996)")
	case "1.2":
		s.tlsMin = tls.VersionTLS12
	case "1.3":
		s.tlsMin = tls.VersionTLS13
	default:
		errs = append(errs, fmt.Errorf("--tls-min-version %q is not supported: use 1.2 or 1.3", *minimum))
	}
	switch *level {
	case "", "info":
	case "trace", "all":
		s.level = slog.LevelDebug
	default:
		if err := s.level.UnmarshalText([]byte(*level)); err != nil {
			errs = append(errs, fmt.Errorf("--log-level %q is unknown: use debug, info, warn or error", *level))
		}
	}
	return s, errors.Join(errs...)
}

func (s *settings) checkDoctor() error {
	switch {
	case s.doctor != "off" && s.doctor != "report" && s.doctor != "evict":
		return fmt.Errorf("--doctor %q is unknown: use off, report or evict", s.doctor)
	case s.doctorInterval < 10*time.Second:
		return fmt.Errorf("--doctor-interval=%s: at least 10s, because every pod that asks for an identity is read each time", s.doctorInterval)
	case s.doctorEvictStale && s.doctor != "evict":
		return errors.New("--doctor-evict-stale needs --doctor=evict")
	}
	return nil
}

// readProxy takes the token proxy's settings.
func (s *settings) readProxy(resources, level string, getenv func(string) string) error {
	s.Proxy = mutation.Proxy{
		Image: cmp.Or(getenv("PROXY_IMAGE"), proxyImage), InitImage: cmp.Or(getenv("PROXY_INIT_IMAGE"), proxyInitImage),
		LogLevel: cmp.Or(level, "info"),
	}
	if resources == "" {
		return nil
	}
	var err error
	if s.Proxy.Resources, err = strictly(resources, &corev1.ResourceRequirements{}); err != nil {
		return fmt.Errorf(`--proxy-resources: %w: write JSON such as {"requests":{"cpu":"10m","memory":"20Mi"}}`, err)
	}
	return nil
}

// readEndpoint takes the custom token endpoint's environment.
func (s *settings) readEndpoint(getenv func(string) string) error {
	e := &s.Endpoint
	e.Proxy, e.SNIName = getenv("AZURE_KUBERNETES_TOKEN_PROXY"), getenv("AZURE_KUBERNETES_SNI_NAME")
	e.CAData, e.CAConfigMap = getenv("AZURE_KUBERNETES_CA_DATA"), getenv("AZURE_KUBERNETES_CA_CONFIGMAP_NAME")
	e.CASigner = getenv("AZURE_KUBERNETES_CA_CTB_SIGNER_NAME")
	switch described := e.Proxy != "" || e.SNIName != "" || e.CAData != "" || e.CAConfigMap != "" || e.CASigner != ""; {
	case described && e.Suffix == "" && e.Audience == "":
		s.notes = append(s.notes, "AZURE_KUBERNETES_... variables have no effect without --custom-token-endpoint-annotation-suffix and --custom-token-endpoint-audience: set both flags or remove the variables")
	case e.Suffix != "" && e.Proxy == "":
		s.notes = append(s.notes, "AZURE_KUBERNETES_TOKEN_PROXY is not set: pods with the annotation "+workloadidentity.AnnotationUsePrefix+e.Suffix+" get a token for the custom audience, but not where to exchange it")
	}
	const name = "AZURE_KUBERNETES_CA_CTB_LABEL_SELECTOR"
	text := getenv(name)
	if text == "" {
		return nil
	}
	var selector metav1.LabelSelector
	written, err := strictly(text, &selector)
	if err == nil {
		_, err = metav1.LabelSelectorAsSelector(&selector)
	}
	if err != nil {
		return fmt.Errorf(`%s: %w: write a label selector as JSON, such as {"matchLabels":{"app":"x"}}`, name, err)
	}
	e.CALabelSelector = written
	return nil
}
