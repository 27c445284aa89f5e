package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// strictly reads JSON into v and returns it as the API server writes it: that one
// minds the case of members, encoding/json does not, and what it does not know
// it drops. A selector with "MatchLabels" would select everything.
func strictly(text string, v any) (json.RawMessage, error) {
	dec := json.NewDecoder(strings.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more than one value")
	}
	return json.Marshal(v)
}

// servingNames checks the names of the serving certificate. One that the
// certificate can have and never matches would be made anew without end.
func servingNames(list string) (string, error) {
	names := strings.Split(list, ",")
	for i, name := range names {
		name = strings.TrimSpace(name)
		if names[i] = name; net.ParseIP(name) == nil && len(validation.IsDNS1123Subdomain(name)) > 0 {
			return "", fmt.Errorf("--serving-names: %q is neither a host name nor an address: write them as host.example,192.0.2.1,2001:db8::1", name)
		}
	}
	return strings.Join(names, ","), nil
}
