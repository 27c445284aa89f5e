package imds

import (
	"net/url"
	"strings"
	"testing"
)

// What url.ParseQuery reads another way, or not at all, another program on the
// way to the metadata service might too.
func FuzzAQueryIsReadAsTheStandardLibraryReadsIt(f *testing.F) {
	for _, q := range []string{
		"", "resource=r", "resource=r&client_id=c", "resource=r&Resource=r", "resource=r&resource=", "resource=r;client_id=c", "resource=%zz", "%zz=1&resource=r",
		"&&resource=r&", "resource=a%20b+c&client%5Fid=x", "resource=r&object_id=&principal_id=o", "resource=r&a&a", "resource=r&=&=", "resource==r=", "re%00source=r",
		"resource=r&x=1&y=2&z=3&u=4&v=5&w=6&s=7&t=8&x=9", "resource=r&\u212a=1&k=2",
	} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		values, malformed := url.ParseQuery(raw)
		seen, twice := map[string]bool{}, false
		for name, all := range values {
			name = strings.ToLower(name)
			twice = twice || len(all) > 1 || seen[name]
			seen[name] = true
		}
		q, err := parseQuery(raw)
		switch {
		case malformed != nil || twice:
			if err == nil {
				t.Errorf("%q passed: %+v", raw, q)
			}
		case err == nil:
			of := func(names ...string) string {
				for name, all := range values {
					for _, n := range names {
						if strings.ToLower(name) == n && all[0] != "" {
							return all[0]
						}
					}
				}
				return ""
			}
			want := TokenRequest{Resource: of("resource"), ClientID: of("client_id"), ObjectID: of("object_id", "principal_id"), ResourceID: of("msi_res_id", "mi_res_id", "msi-res-id"), APIVersion: of("api-version")}
			if q != want {
				t.Errorf("%q is read as %+v, want %+v", raw, q, want)
			}
		}
	})
}
