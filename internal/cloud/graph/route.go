package graph

import (
	"net/http"
	"net/url"
	"strings"
)

// A row is one operation: a method and a path below the version. In the path {id} is an object's id or an alternate key,
// {sub} what stands below it.
type row struct {
	method, path string
	need         need
	// resolve finds the object of {id}, sets call.id to its object id, and returns its owners. nil: no such object.
	resolve func(*call) (owners []string, err error)
	handler func(*call) (answer, error)
}

func rows() []row {
	const (
		get, post, patch, del = http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodDelete
		credentials           = "applications/{id}/federatedidentitycredentials"
	)
	app, sp := (*call).findApplication, (*call).findPrincipal
	return []row{
		{method: get, path: "applications", need: readObjects, handler: (*call).listApplications},
		{method: post, path: "applications", need: createObject, handler: (*call).createApplication},
		{method: get, path: "applications/{id}", need: readObjects, resolve: app, handler: (*call).getApplication},
		{method: patch, path: "applications/{id}", need: changeObject, resolve: app, handler: (*call).patchApplication},
		{method: del, path: "applications/{id}", need: changeObject, resolve: app, handler: (*call).deleteApplication},
		{method: post, path: "applications/{id}/addpassword", need: changeObject, resolve: app, handler: (*call).addPassword},
		{method: post, path: "applications/{id}/removepassword", need: changeObject, resolve: app, handler: (*call).removePassword},
		{method: get, path: "applications/{id}/owners", need: readObjects, resolve: app, handler: (*call).listOwners},
		{method: post, path: "applications/{id}/owners/$ref", need: changeObject, resolve: app, handler: (*call).addOwner},
		{method: del, path: "applications/{id}/owners/{sub}/$ref", need: changeObject, resolve: app, handler: (*call).removeOwner},

		{method: get, path: credentials, need: readObjects, resolve: app, handler: (*call).listFederated},
		{method: post, path: credentials, need: changeObject, resolve: app, handler: (*call).createFederated},
		{method: get, path: credentials + "/{sub}", need: readObjects, resolve: app, handler: (*call).getFederated},
		{method: patch, path: credentials + "/{sub}", need: changeObject, resolve: app, handler: (*call).patchFederated},
		{method: del, path: credentials + "/{sub}", need: changeObject, resolve: app, handler: (*call).deleteFederated},

		{method: get, path: "serviceprincipals", need: readObjects, handler: (*call).listPrincipals},
		{method: post, path: "serviceprincipals", need: createObject, handler: (*call).createPrincipal},
		{method: get, path: "serviceprincipals/{id}", need: readObjects, resolve: sp, handler: (*call).getPrincipal},
		{method: patch, path: "serviceprincipals/{id}", need: changeObject, resolve: sp, handler: (*call).patchPrincipal},
		{method: del, path: "serviceprincipals/{id}", need: changeObject, resolve: sp, handler: (*call).deletePrincipal},
		{method: get, path: "serviceprincipals/{id}/owners", need: readObjects, resolve: sp, handler: (*call).listOwners},
		{method: post, path: "serviceprincipals/{id}/getmembergroups", need: readObjects, resolve: sp, handler: (*call).noGroups},

		{method: post, path: "directoryobjects/getbyids", need: readObjects, handler: (*call).getByIDs},
		{method: get, path: "directoryobjects/{id}", need: readObjects, handler: (*call).getObject},
		{method: post, path: "directoryobjects/{id}/checkmembergroups", need: readObjects, handler: (*call).noGroups},
		{method: get, path: "organization", need: anybody, handler: (*call).organization},
		{method: get, path: "me", need: anybody, handler: (*call).me},
		{method: get, path: "me/{sub}", need: anybody, handler: (*call).me},
		{method: get, path: "users", need: readObjects, handler: (*call).nothing},
		{method: get, path: "users/{id}", need: readObjects, handler: (*call).nobody},
		{method: get, path: "groups", need: readObjects, handler: (*call).nothing},
		{method: get, path: "groups/{id}", need: readObjects, handler: (*call).nobody},
		{method: get, path: "oauth2permissiongrants", need: readObjects, handler: (*call).nothing},
	}
}

// locate finds the row of a path, which is matched without case except for ids and names.
func (c *call) locate(method, path string) error {
	version, rest, _ := strings.Cut(strings.Trim(path, "/"), "/")
	if c.version = version; version != "v1.0" && version != "beta" {
		return badRequest("Invalid version: '%.100s'. This cloud serves v1.0 and beta.", version)
	}
	segments, err := segments(rest)
	if err != nil {
		return err
	}
	known := false
	for _, r := range rows() {
		id, sub, ok := match(strings.Split(r.path, "/"), segments)
		if !ok {
			continue
		}
		known = true
		if r.method == method {
			c.route, c.key, c.id, c.sub = r, id, id, sub
			return nil
		}
	}
	if known {
		return fault(http.StatusMethodNotAllowed, "Request_BadRequest", "Specified HTTP method is not allowed for the request target.")
	}
	return fault(http.StatusBadRequest, "BadRequest", "Resource not found for the segment '%.200s'. This cloud serves applications, servicePrincipals, federatedIdentityCredentials, directoryObjects and organization.", rest)
}

// segments takes a path apart. A key in parentheses is a segment of its own: applications(appId='x') is the segments
// applications and appId='x', applications('x') is applications and x.
func segments(path string) ([]string, error) {
	var all []string
	for _, raw := range strings.Split(path, "/") {
		s, err := url.PathUnescape(raw)
		if err != nil || s == "" {
			return nil, badRequest("The path '%.300s' is malformed.", path)
		}
		name, key, keyed := strings.Cut(s, "(")
		if !keyed || name == "" {
			all = append(all, s)
			continue
		}
		key, closed := strings.CutSuffix(key, ")")
		if !closed || key == "" {
			return nil, badRequest("The path '%.300s' is malformed: a parenthesis is not closed.", path)
		}
		all = append(all, name, strings.TrimPrefix(strings.TrimSuffix(key, "'"), "'"))
	}
	return all, nil
}

func match(pattern, segments []string) (id, sub string, ok bool) {
	if len(pattern) != len(segments) {
		return "", "", false
	}
	for i, p := range pattern {
		switch {
		case p == "{id}":
			id = segments[i]
		case p == "{sub}":
			sub = segments[i]
		case !strings.EqualFold(p, segments[i]):
			return "", "", false
		}
	}
	return id, sub, true
}

// alternate reads the alternate key name='value' of a path.
func alternate(key, name string) (string, bool) {
	have, value, ok := strings.Cut(key, "=")
	if !ok || !strings.EqualFold(strings.TrimSpace(have), name) {
		return "", false
	}
	return strings.TrimPrefix(strings.TrimSpace(value), "'"), true
}
