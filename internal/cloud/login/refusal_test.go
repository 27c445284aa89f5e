package login

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
	"github.com/lanyard-id/lanyard/internal/entra"
)

// TestRefusals goes through the catalogue of protocols.md, section 4, as far
// as it applies to applications.
func TestRefusals(t *testing.T) {
	d := newDoor(t)
	const nobody = "11111111-2222-3333-4444-555555555555"
	var expired string
	d.update(func(tx *state.Tx) (err error) {
		expired, err = directory.AddPassword(tx, d.micApp.ObjectID, "expired", d.clock.Now())
		return err
	})
	bare := d.identity("bare")
	form := func(key, value string) url.Values { return d.form(map[string]string{key: value}) }
	basic := func(s string) http.Header {
		return http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte(s))}}
	}
	for name, tt := range map[string]struct {
		method, path string // "" means POST, the v2 endpoint
		form         url.Values
		body         string // instead of form
		header       http.Header
		status, code int
		error, text  string
	}{
		"an unknown tenant":                     {path: "/" + nobody + "/oauth2/v2.0/token", form: d.form(nil), status: 400, code: 90002, error: "invalid_request", text: "AADSTS90002: Tenant '" + nobody + "' not found."},
		"an unknown domain":                     {path: "/nowhere.example/oauth2/v2.0/token", form: d.form(nil), status: 400, code: 90002, error: "invalid_request", text: "AADSTS90002: Tenant 'nowhere.example' not found."},
		"a tenant that is no name":              {path: "/nonsense/oauth2/v2.0/token", form: d.form(nil), status: 400, code: 900023, error: "invalid_request", text: "AADSTS900023: Specified tenant identifier 'nonsense' is neither"},
		"an application at common":              {path: "/common/oauth2/v2.0/token", form: d.form(nil), status: 400, code: 50059, error: "invalid_request", text: "AADSTS50059: No tenant-identifying information"},
		"an unknown application":                {form: form("client_id", nobody), status: 400, code: 700016, error: "unauthorized_client", text: "AADSTS700016: Application with identifier '" + nobody + "' was not found in the directory 'Contoso'."},
		"a client id that is no GUID":           {form: form("client_id", "x\x00y"), status: 400, code: 700016, error: "unauthorized_client", text: "AADSTS700016: "},
		"an object id instead of a client id":   {form: form("client_id", d.mic.ID), status: 400, code: 700016, error: "unauthorized_client", text: "AADSTS700016: "},
		"a wrong secret":                        {form: form("client_secret", "wrong"), status: 401, code: 7000215, error: "invalid_client", text: "AADSTS7000215: Invalid client secret provided."},
		"a secret with a character more":        {form: form("client_secret", d.secret+"x"), status: 401, code: 7000215, error: "invalid_client", text: "AADSTS7000215: "},
		"an expired secret":                     {form: form("client_secret", expired), status: 401, code: 7000222, error: "invalid_client", text: "AADSTS7000222: The provided client secret keys for app '" + d.mic.AppID + "' are expired."},
		"a secret for a managed identity":       {form: form("client_id", d.demo.AppID), status: 401, code: 7000215, error: "invalid_client", text: "AADSTS7000215: "},
		"no credential":                         {form: form("client_secret", ""), status: 401, code: 7000218, error: "invalid_client", text: "AADSTS7000218: The request body must contain the following parameter: 'client_assertion' or 'client_secret'."},
		"an identity that federates with none":  {form: with(d.federated(d.issuer.token(nil, d.issuer.claims(d.clock.Now(), nil))), "client_id", bare.AppID), status: 401, code: 70025, error: "invalid_client", text: "AADSTS70025: The client '" + bare.AppID + "'(bare) has no configured federated identity credentials."},
		"a resource that does not exist":        {form: form("scope", "api://nothing/.default"), status: 400, code: 500011, error: "invalid_resource", text: "AADSTS500011: The resource principal named api://nothing was not found in the tenant named Contoso."},
		"a scope without .default":              {form: form("scope", "https://vault.azure.net/user_impersonation"), status: 400, code: 1002012, error: "invalid_scope", text: "AADSTS1002012: The provided value for scope https://vault.azure.net/user_impersonation is not valid."},
		"a scope without a resource":            {form: form("scope", "/.default"), status: 400, code: 1002012, error: "invalid_scope", text: "AADSTS1002012: "},
		"scopes of two resources":               {form: form("scope", "https://vault.azure.net/.default https://graph.microsoft.com/.default"), status: 400, code: 70011, error: "invalid_scope", text: "AADSTS70011: The provided request must include a 'scope' input parameter."},
		"the scopes of OpenID Connect alone":    {form: form("scope", "openid profile"), status: 400, code: 70011, error: "invalid_scope", text: "AADSTS70011: "},
		"no scope":                              {form: form("scope", ""), status: 400, code: 900144, error: "invalid_request", text: "AADSTS900144: The request body must contain the following parameter: 'scope'."},
		"no client id":                          {form: form("client_id", ""), status: 400, code: 900144, error: "invalid_request", text: "AADSTS900144: The request body must contain the following parameter: 'client_id'."},
		"no grant type":                         {form: form("grant_type", ""), status: 400, code: 900144, error: "invalid_request", text: "AADSTS900144: The request body must contain the following parameter: 'grant_type'."},
		"v1 without a resource":                 {path: d.v1(), form: d.form(nil), status: 400, code: 900144, error: "invalid_request", text: "AADSTS900144: The request body must contain the following parameter: 'resource'."},
		"an assertion without its type":         {form: with(d.federated("a.b.c"), "client_assertion_type", ""), status: 400, code: 900144, error: "invalid_request", text: "AADSTS900144: The request body must contain the following parameter: 'client_assertion_type'."},
		"an assertion of another type":          {form: with(d.federated("a.b.c"), "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:saml2-bearer"), status: 400, code: 90013, error: "invalid_request", text: "AADSTS90013: "},
		"a grant that is not served":            {form: form("grant_type", "password"), status: 400, code: 70003, error: "unsupported_grant_type", text: "AADSTS70003: The app requested an unsupported grant type 'password'."},
		"a grant that is not served, at common": {path: "/organizations/oauth2/v2.0/token", form: form("grant_type", "urn:ietf:params:oauth:grant-type:device_code"), status: 400, code: 70003, error: "unsupported_grant_type", text: "AADSTS70003: "},
		"JSON instead of a form":                {body: `{"grant_type":"client_credentials"}`, status: 400, code: 900144, error: "invalid_request", text: "AADSTS900144: "},
		"GET instead of POST":                   {method: http.MethodGet, form: url.Values{}, status: 400, code: 900561, error: "invalid_request", text: "AADSTS900561: The endpoint only accepts POST requests. Received a GET request."},
		"a parameter twice":                     {form: url.Values{"grant_type": {"client_credentials"}, "client_id": {d.mic.AppID, d.demo.AppID}, "client_secret": {d.secret}, "scope": {"https://vault.azure.net/.default"}}, status: 400, code: 9000411, error: "invalid_request", text: "AADSTS9000411: The request is not properly formatted. The parameter 'client_id' is duplicated."},
		"a form with broken escapes":            {form: nil, body: "grant_type=%zz", header: http.Header{"X-Form": {"1"}}, status: 400, code: 90013, error: "invalid_request", text: "AADSTS90013: "},
		"a giant body":                          {body: "grant_type=client_credentials&x=" + strings.Repeat("x", entra.MaxBody), header: http.Header{"X-Form": {"1"}}, status: 413, code: 90013, error: "invalid_request", text: "AADSTS90013: "},
		"a secret and an assertion":             {form: with(d.federated("a.b.c"), "client_secret", d.secret), status: 400, code: 90013, error: "invalid_request", text: "AADSTS90013: "},
		"HTTP Basic and a secret":               {form: d.form(nil), header: basic(d.mic.AppID + ":" + d.secret), status: 400, code: 90013, error: "invalid_request", text: "AADSTS90013: "},
		"HTTP Basic for another client":         {form: form("client_secret", ""), header: basic(d.demo.AppID + ":" + d.secret), status: 400, code: 90013, error: "invalid_request", text: "AADSTS90013: "},
		"an Authorization header of any other":  {form: d.form(nil), header: http.Header{"Authorization": {"Bearer x"}}, status: 400, code: 90013, error: "invalid_request", text: "AADSTS90013: "},
		"a path that is no endpoint":            {path: "/" + d.tenant.ID + "/oauth2/v3.0/token", form: d.form(nil), status: 404, code: 90023, error: "invalid_request", text: "AADSTS90023: "},
		"the root":                              {path: "/", form: d.form(nil), status: 404, code: 90023, error: "invalid_request", text: "AADSTS90023: "},
	} {
		t.Run(name, func(t *testing.T) {
			d.in(t)
			method, path, body, contentType := http.MethodPost, d.v2(), tt.form.Encode(), "application/x-www-form-urlencoded"
			if tt.method != "" {
				method = tt.method
			}
			if tt.path != "" {
				path = tt.path
			}
			if tt.body != "" {
				body = tt.body
				if tt.header.Get("X-Form") == "" {
					contentType = "application/json"
				}
			}
			r := d.send(method, path, contentType, body, tt.header)
			d.wantError(t, r, tt.status, tt.code, tt.error, tt.text)
		})
	}
	if n := d.issuer.fetches.Load(); n != 0 {
		t.Errorf("the issuer was asked %d times", n)
	}
	if log := d.log.String(); !strings.Contains(log, `msg="login refused" path=/`+d.tenant.ID+`/oauth2/v2.0/token status=401 code=7000215 client=`+d.mic.AppID) {
		t.Errorf("the log lacks a refusal with its client:\n%s", log)
	}
}

// TestAssertionRefusals is the order of protocols.md, section 3, and what an
// attacker may try.
func TestAssertionRefusals(t *testing.T) {
	d := newDoor(t)
	now := d.clock.Now()
	i := d.issuer
	token := func(change map[string]any) string { return i.token(nil, i.claims(now, change)) }
	header := func(h map[string]any) string { return i.token(h, i.claims(now, nil)) }
	good := token(nil)
	parts := strings.Split(good, ".")
	own, err := d.server.ManagedIdentityToken(t.Context(), d.demo.ID, azure.ResourceVault)
	if err != nil {
		t.Fatal(err)
	}
	// Another's key under the right kid.
	forger := newIssuer(t)
	forged := forger.token(nil, i.claims(now, nil))
	for name, tt := range map[string]struct {
		assertion    string
		status, code int
		error, text  string
	}{
		"something that is no token":           {"assertion", 400, 50027, "invalid_request", "AADSTS50027: JWT token is invalid or malformed."},
		"a token of 65 KiB":                    {token(map[string]any{"x": strings.Repeat("x", 65<<10)}), 400, 50027, "invalid_request", "AADSTS50027: "},
		"a token with a member twice":          {segment(`{"alg":"RS256","alg":"none","kid":"k1"}`) + "." + parts[1] + "." + parts[2], 400, 50027, "invalid_request", "AADSTS50027: "},
		"a foreign typ":                        {header(map[string]any{"typ": "at+jwt"}), 400, 5002727, "invalid_request", "AADSTS5002727: Invalid JWT header type specified. Allowed types: 'JWT','http://openid.net/specs/jwt/1.0'."},
		"a typ that is no text":                {header(map[string]any{"typ": 7}), 400, 5002727, "invalid_request", "AADSTS5002727: "},
		"algorithm none":                       {segment(`{"alg":"none","kid":"k1"}`) + "." + parts[1] + ".", 400, 50027, "invalid_request", "AADSTS50027: "},
		"algorithm NONE, signature kept":       {segment(`{"alg":"NONE","kid":"k1"}`) + "." + parts[1] + "." + parts[2], 400, 50027, "invalid_request", "AADSTS50027: "},
		"an algorithm under another case":      {segment(`{"ALG":"RS256","kid":"k1"}`) + "." + parts[1] + "." + parts[2], 400, 50027, "invalid_request", "AADSTS50027: "},
		"HS256 with the public key as secret":  {hs256(t, "k1", i.key.PublicKey, i.claims(now, nil)), 400, 50027, "invalid_request", "AADSTS50027: "},
		"PS256, which federation does not use": {sign(t, i.key, "PS256", map[string]any{"kid": "k1"}, i.claims(now, nil)), 400, 50027, "invalid_request", "AADSTS50027: "},
		"no kid":                               {header(map[string]any{"kid": nil}), 400, 50027, "invalid_request", "AADSTS50027: "},
		"no issuer":                            {token(map[string]any{"iss": nil}), 400, 50027, "invalid_request", "AADSTS50027: "},
		"no subject":                           {token(map[string]any{"sub": nil}), 400, 50027, "invalid_request", "AADSTS50027: "},
		"a subject that is a list":             {token(map[string]any{"sub": []string{subject}}), 400, 50027, "invalid_request", "AADSTS50027: "},
		"no audience":                          {token(map[string]any{"aud": nil}), 400, 50027, "invalid_request", "AADSTS50027: "},
		"no expiry":                            {token(map[string]any{"exp": nil}), 400, 50027, "invalid_request", "AADSTS50027: "},
		"an expiry that is text":               {token(map[string]any{"exp": "99999999999"}), 400, 50027, "invalid_request", "AADSTS50027: "},
		"a token of Entra itself":              {own.AccessToken, 401, 700222, "invalid_client", "AADSTS700222: AAD-issued tokens may not be used for federated identity flows."},
		"a token that says it is Entra's":      {token(map[string]any{"iss": "https://login.microsoftonline.com/x/v2.0"}), 401, 700222, "invalid_client", "AADSTS700222: "},
		"another issuer":                       {token(map[string]any{"iss": "https://other.example/"}), 401, 700211, "invalid_client", "AADSTS700211: No matching federated identity record found for presented assertion issuer 'https://other.example/'. Check your"},
		"the issuer without its slash":         {token(map[string]any{"iss": strings.TrimSuffix(i.url, "/")}), 401, 700211, "invalid_client", "AADSTS700211: "},
		"the issuer by http":                   {token(map[string]any{"iss": strings.Replace(i.url, "https:", "http:", 1)}), 401, 700211, "invalid_client", "AADSTS700211: "},
		"the issuer in another case":           {token(map[string]any{"iss": strings.Replace(i.url, "cluster", "Cluster", 1)}), 401, 700211, "invalid_client", "AADSTS700211: "},
		"another subject":                      {token(map[string]any{"sub": "system:serviceaccount:default:other"}), 401, 700213, "invalid_client", "AADSTS700213: No matching federated identity record found for presented assertion subject 'system:serviceaccount:default:other'. Check your"},
		"the subject in another case":          {token(map[string]any{"sub": strings.ToLower(subject)}), 401, 7002138, "invalid_client", "AADSTS7002138: No matching federated identity record found for presented assertion subject '" + strings.ToLower(subject) + "'. The subject matches with case-insensitive comparison"},
		"another audience":                     {token(map[string]any{"aud": "https://kubernetes.default.svc"}), 401, 700212, "invalid_client", "AADSTS700212: No matching federated identity record found for presented assertion audience 'https://kubernetes.default.svc'. Check your"},
		"the right audience among others":      {token(map[string]any{"aud": []string{azure.AudienceExchange, "other"}}), 401, 700212, "invalid_client", "AADSTS700212: "},
		"an empty list of audiences":           {token(map[string]any{"aud": []string{}}), 401, 700212, "invalid_client", "AADSTS700212: "},
		"a key that the issuer has not":        {header(map[string]any{"kid": "k2"}), 401, 7000272, "invalid_client", "AADSTS7000272: The certificate with identifier k2 used to sign the federated credential could not be found in the metadata of identity provider " + i.url + "."},
		"another's signature":                  {forged, 401, 700027, "invalid_client", "AADSTS700027: Client assertion contains an invalid signature. [Reason - "},
		"a changed signature":                  {parts[0] + "." + parts[1] + "." + flip(parts[2]), 401, 700027, "invalid_client", "AADSTS700027: "},
		"no signature":                         {parts[0] + "." + parts[1] + ".", 401, 700027, "invalid_client", "AADSTS700027: "},
		"the token's own key in its header":    {forger.token(map[string]any{"jwk": map[string]any{"kty": "RSA"}, "jku": forger.url + "jwks"}, i.claims(now, nil)), 401, 700027, "invalid_client", "AADSTS700027: "},
		"an expiry six minutes ago":            {token(map[string]any{"exp": now.Add(-6 * time.Minute).Unix()}), 401, 700024, "invalid_client", "AADSTS700024: Client assertion is not within its valid time range. Current time: 2026-03-04T05:06:07.0000000Z, assertion valid from 2026-03-04T05:06:07.0000000Z, expiry time of assertion 2026-03-04T05:00:07.0000000Z."},
		"an expiry long ago, without nbf":      {token(map[string]any{"exp": 1, "nbf": nil}), 401, 700024, "invalid_client", "AADSTS700024: Client assertion is not within its valid time range. Current time: 2026-03-04T05:06:07.0000000Z, assertion valid from 1970-01-01T00:00:00.0000000Z,"},
		"a start six minutes ahead":            {token(map[string]any{"nbf": now.Add(6 * time.Minute).Unix()}), 401, 700024, "invalid_client", "AADSTS700024: "},
	} {
		t.Run(name, func(t *testing.T) {
			d.in(t)
			r := d.post(d.v2(), d.federated(tt.assertion))
			d.wantError(t, r, tt.status, tt.code, tt.error, tt.text)
			if log := d.log.String(); len(tt.assertion) > 100 && strings.Contains(log, tt.assertion[len(tt.assertion)-80:]) {
				t.Error("the assertion is in the log")
			}
		})
	}
	if n := forger.fetches.Load(); n != 0 {
		t.Errorf("the forger's own address was asked %d times", n)
	}
	if n := i.fetches.Load(); n != 2 {
		t.Errorf("the issuer was asked %d times, want 2", n)
	}
}

func TestAnIssuerThatCannotBeAsked(t *testing.T) {
	d := newDoor(t)
	good := d.issuer.token(nil, d.issuer.claims(d.clock.Now(), nil))
	d.issuer.broken.Store(true)
	const text = "AADSTS50166: Request to External OIDC endpoint failed."
	d.wantError(t, d.post(d.v2(), d.federated(good)), 400, 50166, "invalid_request", text)
	d.issuer.broken.Store(false)
	d.wantError(t, d.post(d.v2(), d.federated(good)), 400, 50166, "invalid_request", text) // remembered for seconds
	if n := d.issuer.fetches.Load(); n != 1 {
		t.Errorf("the issuer was asked %d times, want once", n)
	}
	d.clock.Advance(5 * time.Second)
	if r := d.post(d.v2(), d.federated(good)); r.status != http.StatusOK {
		t.Errorf("after the issuer came back: %s", r.raw)
	}
}

func TestCorrelationIDs(t *testing.T) {
	d := newDoor(t)
	const id = "6f6f6f6f-1111-2222-3333-444444444444"
	for name, send := range map[string]func() reply{
		"in a header":   func() reply { return d.send(http.MethodPost, d.v2(), "", "", http.Header{"Client-Request-Id": {id}}) },
		"in the query":  func() reply { return d.post(d.v2()+"?client-request-id="+id, url.Values{}) },
		"in the body":   func() reply { return d.post(d.v2(), url.Values{"client-request-id": {id}}) },
		"not as a GUID": func() reply { return d.post(d.v2()+"?client-request-id=x%0Ay", url.Values{}) },
	} {
		t.Run(name, func(t *testing.T) {
			d.in(t)
			r := send()
			if got := r.CorrelationID == id; got != (name != "not as a GUID") || r.header.Get("Client-Request-Id") != r.CorrelationID {
				t.Errorf("correlation id %q, header %q", r.CorrelationID, r.header.Get("Client-Request-Id"))
			}
		})
	}
}
