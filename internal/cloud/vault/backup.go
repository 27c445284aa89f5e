package vault

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

const (
	bucketKeys = "vaultKeys"
	keyBackup  = "backup" // AES-256 key that seals backups
)

// backup seals the secret with all its versions. A backup opens only in the same cloud and subscription, as in Azure.
func (c *call) backup() (answer, error) {
	r, err := c.active()
	if err != nil {
		return answer{}, err
	}
	plain, err := json.Marshal(r)
	if err != nil {
		return answer{}, fmt.Errorf("encoding backup: %w", err)
	}
	seal, err := c.sealer()
	if err != nil {
		return answer{}, err
	}
	nonce := make([]byte, seal.NonceSize())
	_, _ = rand.Read(nonce) // never fails: crypto/rand ends the program instead
	sealed := seal.Seal(nonce, nonce, plain, c.sealedFor())
	return ok(map[string]string{"value": base64.RawURLEncoding.EncodeToString(sealed)})
}

func (c *call) restore() (answer, error) {
	var in struct {
		Value string `json:"value"`
	}
	if err := json.Unmarshal(c.body, &in); err != nil || in.Value == "" {
		return answer{}, badParameter("The property 'value' is required.")
	}
	r, err := c.open(in.Value)
	if err != nil {
		e := badParameter("The backup blob is malformed, was changed, or comes from another subscription.")
		e.Err = err
		return answer{}, e
	}
	old, found, err := c.load(r.Name)
	switch {
	case err != nil:
		return answer{}, err
	case found && old.deleted():
		return answer{}, conflictDeleted(r.Name)
	case found:
		return answer{}, fault(http.StatusConflict, "Conflict", "", "There was a conflict restoring the secret '%s' because a secret with that name exists in this vault.", r.Name)
	}
	return answer{http.StatusOK, c.bundle(r, *r.latest(), true)}, c.save(r)
}

func (c *call) open(text string) (r record, err error) {
	sealed, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return r, err
	}
	seal, err := c.sealer()
	if err != nil {
		return r, err
	}
	if len(sealed) < seal.NonceSize() {
		return r, errors.New("too short")
	}
	plain, err := seal.Open(nil, sealed[:seal.NonceSize()], sealed[seal.NonceSize():], c.sealedFor())
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(plain, &r)
}

func (c *call) sealedFor() []byte { return []byte(azure.Fold(c.vault.ID.SubscriptionID)) }

// sealer makes the key on first use.
func (c *call) sealer() (cipher.AEAD, error) {
	key, found, err := state.Get[[]byte](c.tx, bucketKeys, keyBackup)
	if err != nil {
		return nil, err
	}
	if !found {
		key = make([]byte, 32)
		_, _ = rand.Read(key)
		if err := state.Put(c.tx, bucketKeys, keyBackup, key); err != nil {
			return nil, err
		}
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
