package graph

import (
	"net/http"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/cloud/directory"
)

// firstOwners are the owners of what is being created: those that the request names (owners@odata.bind, as Terraform's azuread does),
// and the caller when it may change only what it owns.
func (c *call) firstOwners(urls []string) ([]string, error) {
	var owners []string
	if !c.access.changeAll {
		owners = []string{c.caller.ObjectID} // else it could not change what it made
	}
	for _, url := range urls {
		id, err := c.owner(url)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(owners, id) {
			owners = append(owners, id)
		}
	}
	return owners, nil
}

// owner is the object id of the service principal with this URL.
func (c *call) owner(url string) (string, error) {
	id, err := referred(url)
	if err != nil {
		return "", err
	}
	sp, ok, err := directory.ServicePrincipalByID(c.tx, id)
	if err == nil && (!ok || sp.TenantID != c.caller.TenantID) {
		err = notFound(id)
	}
	return id, err
}

// owners are those of the resolved object.
func (c *call) owners() ([]string, error) {
	sp, ok, err := directory.ServicePrincipalByID(c.tx, c.id)
	if err != nil || ok {
		return sp.Owners, err
	}
	app, _, err := directory.ApplicationByID(c.tx, c.id)
	return app.Owners, err
}

func (c *call) listOwners() (answer, error) {
	ids, err := c.owners()
	if err != nil {
		return answer{}, err
	}
	all, err := c.objects(ids, nil)
	if err != nil {
		return answer{}, err
	}
	return c.list("directoryObjects", all)
}

func (c *call) addOwner() (answer, error) {
	url, err := c.decodeReference()
	if err != nil {
		return answer{}, err
	}
	id, err := c.owner(url)
	if err != nil {
		return answer{}, err
	}
	have, err := c.owners()
	if err != nil {
		return answer{}, err
	}
	if slices.Contains(have, id) {
		return answer{}, badRequest("One or more added object references already exist for the following modified properties: 'owners'.")
	}
	_, err = directory.UpdateApplication(c.tx, c.id, func(a *directory.Application) { a.Owners = append(a.Owners, id) })
	return answer{status: http.StatusNoContent}, err
}

func (c *call) removeOwner() (answer, error) {
	have, err := c.owners()
	if err != nil {
		return answer{}, err
	}
	if !slices.Contains(have, c.sub) {
		return answer{}, notFound(c.sub)
	}
	_, err = directory.UpdateApplication(c.tx, c.id, func(a *directory.Application) {
		a.Owners = slices.DeleteFunc(a.Owners, func(id string) bool { return id == c.sub })
	})
	return answer{status: http.StatusNoContent}, err
}

// decodeReference reads the URL of an object in the body of a POST to $ref.
func (c *call) decodeReference() (string, error) {
	var in struct {
		ID string `json:"@odata.id"`
	}
	if err := member("@odata.id", c.body, &in); err != nil {
		return "", err
	}
	return in.ID, nil
}

// referred is the object id at the end of the URL of a directory object.
func referred(url string) (string, error) {
	id := url[strings.LastIndexByte(url, '/')+1:]
	if uuid.Validate(id) != nil {
		return "", badRequest("Invalid reference '%.200s': it must be the URL of a directory object.", url)
	}
	return strings.ToLower(id), nil
}
