package vault

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// Published limits of secrets.
// Source: https://learn.microsoft.com/azure/key-vault/secrets/about-secrets
const (
	maxValue       = 25 << 10 // bytes
	maxContentType = 255
	maxTags        = 15
	maxTag         = 256
	maxPage        = 25
)

const bucketSecrets = "secrets" // by UniqueID of the vault / folded name -> record

// A record is a secret with all its versions, oldest first.
type record struct {
	Name     string    `json:"name"`
	Versions []version `json:"versions"`
	Deleted  time.Time `json:"deleted,omitzero"`
	Purge    time.Time `json:"purge,omitzero"` // with Deleted: gone from here on
}

type version struct {
	ID          string            `json:"id"` // 32 hex digits
	Value       string            `json:"value"`
	ContentType string            `json:"contentType,omitempty"`
	Tags        map[string]string `json:"tags,omitempty"`
	Enabled     bool              `json:"enabled"`
	NotBefore   *int64            `json:"nbf,omitempty"` // Unix time, as is the next
	Expires     *int64            `json:"exp,omitempty"`
	Created     int64             `json:"created"`
	Updated     int64             `json:"updated"`
}

func (r record) latest() *version { return &r.Versions[len(r.Versions)-1] }

func (c *call) key(name string) string { return c.vault.UniqueID + "/" + azure.Fold(name) }

// load reads a secret, deleted or not. One whose retention is over does not exist any more.
func (c *call) load(name string) (record, bool, error) {
	r, found, err := state.Get[record](c.tx, bucketSecrets, c.key(name))
	if err != nil || !found || r.expired(c.now) {
		return record{}, false, err
	}
	return r, true, nil
}

func (r record) deleted() bool { return !r.Deleted.IsZero() }

func (r record) expired(now time.Time) bool { return r.deleted() && !now.Before(r.Purge) }

func (c *call) save(r record) error { return state.Put(c.tx, bucketSecrets, c.key(r.Name), r) }

// active reads a secret that is not deleted.
func (c *call) active() (record, error) {
	r, found, err := c.load(c.target.name)
	if err == nil && (!found || r.deleted()) {
		err = notFound(c.target.name)
	}
	return r, err
}

// deleted reads a secret that is deleted and can be recovered.
func (c *call) deleted() (record, error) {
	r, found, err := c.load(c.target.name)
	if err == nil && (!found || !r.deleted()) {
		err = deletedNotFound(c.target.name)
	}
	return r, err
}

// version picks the version that the request names, or the latest.
func (c *call) version(r record) (*version, error) {
	if c.target.version == "" {
		return r.latest(), nil
	}
	for i := range r.Versions {
		if r.Versions[i].ID == azure.Fold(c.target.version) {
			return &r.Versions[i], nil
		}
	}
	return nil, notFound(c.target.name + "/" + c.target.version)
}

// attributes in an answer.
type attributes struct {
	Enabled         bool   `json:"enabled"`
	NotBefore       *int64 `json:"nbf,omitempty"`
	Expires         *int64 `json:"exp,omitempty"`
	Created         int64  `json:"created"`
	Updated         int64  `json:"updated"`
	RecoveryLevel   string `json:"recoveryLevel"`
	RecoverableDays int    `json:"recoverableDays"`
}

// A bundle is a secret in an answer.
type bundle struct {
	Value              *string           `json:"value,omitempty"`
	ContentType        string            `json:"contentType,omitempty"`
	ID                 string            `json:"id"`
	Attributes         attributes        `json:"attributes"`
	Tags               map[string]string `json:"tags,omitempty"`
	RecoveryID         string            `json:"recoveryId,omitempty"`
	DeletedDate        int64             `json:"deletedDate,omitempty"`
	ScheduledPurgeDate int64             `json:"scheduledPurgeDate,omitempty"`
}

func (c *call) base() string {
	return "https://" + azure.Fold(c.vault.Name) + "." + azure.SuffixVault
}

// bundle shows a version without its value. Lists of secrets leave the version out of the id.
func (c *call) bundle(r record, v version, withVersion bool) bundle {
	level := "Recoverable+Purgeable"
	if c.vault.PurgeProtected() {
		level = "Recoverable"
	}
	b := bundle{ContentType: v.ContentType, ID: c.base() + "/secrets/" + r.Name, Tags: v.Tags, Attributes: attributes{
		Enabled: v.Enabled, NotBefore: v.NotBefore, Expires: v.Expires, Created: v.Created, Updated: v.Updated,
		RecoveryLevel: level, RecoverableDays: c.vault.RetentionDays(),
	}}
	if withVersion {
		b.ID += "/" + v.ID
	}
	if r.deleted() {
		b.RecoveryID = c.base() + "/deletedsecrets/" + r.Name
		b.DeletedDate, b.ScheduledPurgeDate = r.Deleted.Unix(), r.Purge.Unix()
	}
	return b
}

// get also answers outside the nbf/exp window: the dates are for the reader's information.
func (c *call) get() (answer, error) {
	r, err := c.active()
	if err != nil {
		return answer{}, err
	}
	v, err := c.version(r)
	if err != nil {
		return answer{}, err
	}
	if !v.Enabled {
		return answer{}, fault(http.StatusForbidden, "Forbidden", "SecretDisabled", "Operation get is not allowed on a disabled secret.")
	}
	b := c.bundle(r, *v, true)
	b.Value = &v.Value
	return ok(b)
}

// An input is the body of a PUT or PATCH; absent members stay nil.
type input struct {
	Value       *string            `json:"value"`
	ContentType *string            `json:"contentType"`
	Tags        *map[string]string `json:"tags"`
	Attributes  *struct {
		Enabled   *bool  `json:"enabled"`
		NotBefore *int64 `json:"nbf"`
		Expires   *int64 `json:"exp"`
	} `json:"attributes"`
}

func (c *call) input() (in input, err error) {
	if err := json.Unmarshal(c.body, &in); err != nil {
		return in, badParameter("The request body is not a JSON object with the members of a secret.")
	}
	if in.ContentType != nil && len(*in.ContentType) > maxContentType {
		return in, badParameter("The content type is too long: at most %d characters.", maxContentType)
	}
	if in.Tags != nil {
		if len(*in.Tags) > maxTags {
			return in, badParameter("Too many tags: at most %d.", maxTags)
		}
		for k, v := range *in.Tags {
			if k == "" || utf8.RuneCountInString(k) > maxTag || utf8.RuneCountInString(v) > maxTag {
				return in, badParameter("The name and value of a tag have at most %d characters.", maxTag)
			}
		}
	}
	return in, nil
}

// apply changes what the input has.
func (v *version) apply(in input, now time.Time) error {
	if in.ContentType != nil {
		v.ContentType = *in.ContentType
	}
	if in.Tags != nil {
		v.Tags = *in.Tags
	}
	if a := in.Attributes; a != nil {
		if a.Enabled != nil {
			v.Enabled = *a.Enabled
		}
		if a.NotBefore != nil {
			v.NotBefore = a.NotBefore
		}
		if a.Expires != nil {
			v.Expires = a.Expires
		}
	}
	if v.NotBefore != nil && *v.NotBefore < 0 || v.Expires != nil && *v.Expires < 0 {
		return badParameter("The attributes nbf and exp are Unix times in seconds and cannot be negative.")
	}
	if v.NotBefore != nil && v.Expires != nil && *v.Expires <= *v.NotBefore {
		return badParameter("The attribute exp must be later than nbf.")
	}
	v.Updated = now.Unix()
	return nil
}

// set adds a version.
func (c *call) set() (answer, error) {
	in, err := c.input()
	if err != nil {
		return answer{}, err
	}
	switch {
	case in.Value == nil:
		return answer{}, badParameter("The property 'value' is required.")
	case len(*in.Value) > maxValue:
		return answer{}, badParameter("The secret's value is too long: %d bytes, at most %d are allowed.", len(*in.Value), maxValue)
	}
	r, found, err := c.load(c.target.name)
	if err != nil {
		return answer{}, err
	}
	if found && r.deleted() {
		return answer{}, conflictDeleted(r.Name)
	}
	if !found {
		r = record{Name: c.target.name}
	}
	v := version{ID: newVersion(), Value: *in.Value, Enabled: true, Created: c.now.Unix()}
	if err := v.apply(in, c.now); err != nil {
		return answer{}, err
	}
	r.Versions = append(r.Versions, v)
	b := c.bundle(r, v, true)
	b.Value = &v.Value
	return answer{http.StatusOK, b}, c.save(r)
}

func newVersion() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return hex.EncodeToString(b[:])
}

// update changes what describes a version; the value stays.
func (c *call) update() (answer, error) {
	in, err := c.input()
	if err != nil {
		return answer{}, err
	}
	r, err := c.active()
	if err != nil {
		return answer{}, err
	}
	v, err := c.version(r)
	if err != nil {
		return answer{}, err
	}
	if err := v.apply(in, c.now); err != nil {
		return answer{}, err
	}
	return answer{http.StatusOK, c.bundle(r, *v, true)}, c.save(r)
}

func (c *call) remove() (answer, error) {
	r, err := c.active()
	if err != nil {
		return answer{}, err
	}
	r.Deleted, r.Purge = c.now, c.now.AddDate(0, 0, c.vault.RetentionDays())
	return answer{http.StatusOK, c.bundle(r, *r.latest(), true)}, c.save(r)
}

func (c *call) getDeleted() (answer, error) {
	r, err := c.deleted()
	if err != nil {
		return answer{}, err
	}
	return ok(c.bundle(r, *r.latest(), true))
}

func (c *call) recover() (answer, error) {
	r, err := c.deleted()
	if err != nil {
		return answer{}, err
	}
	r.Deleted, r.Purge = time.Time{}, time.Time{}
	return answer{http.StatusOK, c.bundle(r, *r.latest(), true)}, c.save(r)
}

func (c *call) purge() (answer, error) {
	r, err := c.deleted()
	if err != nil {
		return answer{}, err
	}
	if c.vault.PurgeProtected() {
		return answer{}, fault(http.StatusForbidden, "Forbidden", "ForbiddenByPolicy", "Operation 'purge' is not allowed because purge protection is enabled for this vault. The secret is purged on %s.", r.Purge.Format(time.RFC3339))
	}
	return answer{status: http.StatusNoContent}, state.Delete(c.tx, bucketSecrets, c.key(r.Name))
}

// A page is a part of a list.
type page struct {
	Value    []bundle `json:"value"`
	NextLink *string  `json:"nextLink"`
}

func (c *call) list() (answer, error)        { return c.listWhere("/secrets", record.isActive) }
func (c *call) listDeleted() (answer, error) { return c.listWhere("/deletedsecrets", record.deleted) }

func (r record) isActive() bool { return !r.deleted() }

func (c *call) listWhere(path string, want func(record) bool) (answer, error) {
	all, err := state.List[record](c.tx, bucketSecrets, c.vault.UniqueID+"/")
	if err != nil {
		return answer{}, err
	}
	var items []bundle
	var cursors []string
	for _, r := range all {
		if !r.expired(c.now) && want(r) {
			items = append(items, c.bundle(r, *r.latest(), false))
			cursors = append(cursors, azure.Fold(r.Name))
		}
	}
	return c.page(path, items, cursors)
}

func (c *call) versions() (answer, error) {
	r, err := c.active()
	if err != nil {
		return answer{}, err
	}
	var items []bundle
	var cursors []string
	slices.SortFunc(r.Versions, func(a, b version) int { return strings.Compare(a.ID, b.ID) })
	for _, v := range r.Versions {
		items = append(items, c.bundle(r, v, true))
		cursors = append(cursors, v.ID)
	}
	return c.page("/secrets/"+r.Name+"/versions", items, cursors)
}

// page cuts a list. The cursors are in ascending order; the token that leads to the next page names the last item of
// this one, so that items that come and go in between do not shift the rest.
func (c *call) page(path string, items []bundle, cursors []string) (answer, error) {
	size := maxPage
	if text := c.query.Get("maxresults"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxPage {
			return answer{}, badParameter("The parameter maxresults must be a number from 1 to %d.", maxPage)
		}
		size = n
	}
	start := 0
	if token := c.query.Get("$skiptoken"); token != "" {
		after, err := base64.RawURLEncoding.DecodeString(token)
		if err != nil {
			return answer{}, badParameter("The parameter $skiptoken is not one of ours.")
		}
		for start < len(cursors) && cursors[start] <= string(after) {
			start++
		}
	}
	end := min(start+size, len(items))
	p := page{Value: append([]bundle{}, items[start:end]...)}
	if end < len(items) {
		q := url.Values{"api-version": {c.query.Get("api-version")}, "maxresults": {strconv.Itoa(size)}}
		next := c.base() + path + "?" + q.Encode() + "&$skiptoken=" + base64.RawURLEncoding.EncodeToString([]byte(cursors[end-1]))
		p.NextLink = &next
	}
	return ok(p)
}

// DeleteVault removes all secrets of a vault that is gone (management.Server.VaultDeleted).
func DeleteVault(tx *state.Tx, uniqueID string) error {
	keys, err := state.Keys(tx, bucketSecrets, uniqueID+"/")
	if err != nil {
		return err
	}
	for _, k := range keys {
		if err := state.Delete(tx, bucketSecrets, k); err != nil {
			return err
		}
	}
	return nil
}
