package login

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/oidc"
)

const discoveryAge = "max-age=86400, private"

// instanceDiscovery is the answer of /common/discovery/instance.
type instanceDiscovery struct {
	Endpoint   string          `json:"tenant_discovery_endpoint"`
	APIVersion string          `json:"api-version"`
	Metadata   []instanceGroup `json:"metadata"`
}

type instanceGroup struct {
	Network string   `json:"preferred_network"`
	Cache   string   `json:"preferred_cache"`
	Aliases []string `json:"aliases"`
}

// serveInstance tells a client whether the host in authorization_endpoint
// is one of Entra's. Only this cloud's own names are.
func (s *Server) serveInstance(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	u, err := url.Parse(q.Get("authorization_endpoint"))
	if err != nil || u.Scheme != "https" || !ownHost(u.Hostname()) {
		return entra.UnknownInstance()
	}
	version := q.Get("api-version")
	if version != "1.0" {
		version = "1.1"
	}
	tenant, _, _ := strings.Cut(strings.TrimLeft(u.Path, "/"), "/")
	if tenant == "" {
		tenant = "common"
	}
	return s.document(w, instanceDiscovery{
		Endpoint:   endpoint(r) + "/" + url.PathEscape(tenant) + "/v2.0/.well-known/openid-configuration",
		APIVersion: version,
		Metadata: []instanceGroup{
			{azure.HostLogin, "login.windows.net", azure.LoginHosts()},
			{"login.partner.microsoftonline.cn", "login.partner.microsoftonline.cn", []string{"login.partner.microsoftonline.cn", "login.chinacloudapi.cn"}},
			{"login.microsoftonline.de", "login.microsoftonline.de", []string{"login.microsoftonline.de"}},
			{"login.microsoftonline.us", "login.microsoftonline.us", []string{"login.microsoftonline.us", "login.usgovcloudapi.net"}},
			{"login-us.microsoftonline.com", "login-us.microsoftonline.com", []string{"login-us.microsoftonline.com"}},
		},
	})
}

// configuration is Entra's discovery document: the standard one and what
// Entra adds.
type configuration struct {
	oidc.Configuration
	AuthMethods         []string `json:"token_endpoint_auth_methods_supported"`
	ResponseModes       []string `json:"response_modes_supported"`
	RequestURIParameter bool     `json:"request_uri_parameter_supported"`
	DeviceAuthorization string   `json:"device_authorization_endpoint"`
	HTTPLogout          bool     `json:"http_logout_supported"`
	FrontchannelLogout  bool     `json:"frontchannel_logout_supported"`
	EndSession          string   `json:"end_session_endpoint"`
	CheckSession        string   `json:"check_session_iframe,omitempty"`          // v1
	MultiRefresh        bool     `json:"microsoft_multi_refresh_token,omitempty"` // v1
	KerberosEndpoint    string   `json:"kerberos_endpoint"`
	TenantRegionScope   string   `json:"tenant_region_scope,omitempty"`
	CloudInstanceName   string   `json:"cloud_instance_name"`
	CloudGraphHostName  string   `json:"cloud_graph_host_name"`
	MicrosoftGraphHost  string   `json:"msgraph_host"`
	RBACURL             string   `json:"rbac_url"`
}

func (s *Server) serveConfiguration(w http.ResponseWriter, r *http.Request, name string, v entra.Version) error {
	t, err := s.discoveryTenant(name)
	if err != nil {
		return err
	}
	id, issuerID, region := t.ID, t.ID, "NA"
	if t.any != "" {
		id, issuerID, region = t.any, "{tenantid}", ""
	}
	base := endpoint(r) + "/" + id
	c := configuration{
		Configuration: oidc.Configuration{
			Issuer: issuerV2(issuerID), JWKSURI: base + "/discovery/v2.0/keys",
			AuthorizationEndpoint: base + "/oauth2/v2.0/authorize", TokenEndpoint: base + "/oauth2/v2.0/token",
			UserinfoEndpoint:                 "https://graph.microsoft.com/oidc/userinfo",
			ResponseTypesSupported:           []string{"code", "id_token", "code id_token", "id_token token"},
			SubjectTypesSupported:            []string{"pairwise"},
			IDTokenSigningAlgValuesSupported: []string{oidc.RS256},
			ScopesSupported:                  []string{"openid", "profile", "email", "offline_access"},
			ClaimsSupported: []string{"sub", "iss", "cloud_instance_name", "cloud_instance_host_name", "cloud_graph_host_name", "msgraph_host",
				"aud", "exp", "iat", "auth_time", "acr", "nonce", "preferred_username", "name", "tid", "ver", "at_hash", "c_hash", "email"},
		},
		AuthMethods:         []string{"client_secret_post", "private_key_jwt", "client_secret_basic"},
		ResponseModes:       []string{"query", "fragment", "form_post"},
		DeviceAuthorization: base + "/oauth2/v2.0/devicecode",
		HTTPLogout:          true, FrontchannelLogout: true,
		EndSession: base + "/oauth2/v2.0/logout", KerberosEndpoint: base + "/kerberos", TenantRegionScope: region,
		CloudInstanceName: "microsoftonline.com", CloudGraphHostName: "graph.windows.net", MicrosoftGraphHost: azure.HostGraph,
		RBACURL: "https://pas.windows.net",
	}
	if v == entra.V1 {
		c.Issuer, c.JWKSURI = issuerV1(issuerID), base+"/discovery/keys"
		c.AuthorizationEndpoint, c.TokenEndpoint = base+"/oauth2/authorize", base+"/oauth2/token"
		c.UserinfoEndpoint = base + "/openid/userinfo"
		c.DeviceAuthorization, c.EndSession = base+"/oauth2/devicecode", base+"/oauth2/logout"
		c.CheckSession, c.MultiRefresh = base+"/oauth2/checksession", true
	}
	return s.document(w, c)
}

// serveKeys publishes every key that signed a token which may still live.
func (s *Server) serveKeys(w http.ResponseWriter, name string, v entra.Version) error {
	t, err := s.discoveryTenant(name)
	if err != nil {
		return err
	}
	issuerID := t.ID
	if t.any != "" {
		issuerID = "{tenantid}"
	}
	set := oidc.KeySet{Keys: []oidc.Key{}}
	for _, k := range s.keys.Load().keys {
		key := k.public
		key.CloudInstance = "microsoftonline.com"
		if v == entra.V2 {
			key.Issuer = issuerV2(issuerID)
		}
		set.Keys = append(set.Keys, key)
	}
	return s.document(w, set)
}

func (s *Server) discoveryTenant(name string) (tenantPath, error) {
	t, err := s.tenant(name)
	var e *entra.Error
	if errors.As(err, &e) && e.Code == entra.TenantNotFound(name).Code {
		return t, entra.DiscoveryTenantNotFound(name)
	}
	return t, err
}

func (s *Server) document(w http.ResponseWriter, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding discovery document: %w", err)
	}
	h := w.Header()
	h.Set("Cache-Control", discoveryAge)
	h.Del("Pragma")
	h.Del("Expires")
	h.Set("Content-Type", "application/json; charset=utf-8")
	if _, err := w.Write(body); err != nil {
		s.logger.Debug("discovery document not delivered", "err", err)
	}
	return nil
}
