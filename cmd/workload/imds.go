package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// imds does what a person's script does with curl and jq.
func imds(ctx context.Context, o options, r *report) error {
	r.Door = "1 IMDS"
	endpoint, err := url.Parse(o.URL)
	if err != nil {
		return fmt.Errorf("--url: %w", err)
	}
	q := endpoint.Query()
	q.Set("api-version", "2018-02-01")
	q.Set("resource", o.Resource)
	endpoint.RawQuery = q.Encode()

	// The metadata service is never behind a proxy.
	direct := &http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(ctx context.Context) (string, error) { return metadataToken(ctx, direct, endpoint.String()) }
	token, err := attempt(ctx, o, get)
	if err != nil {
		return err
	}
	r.first(token)
	again := time.Now()
	if token, err = get(ctx); err != nil {
		return fmt.Errorf("asking a second time: %w", err)
	}
	r.SecondTokenMillis = millis(time.Since(again))

	value, err := vaultSecret(ctx, o, token)
	if err != nil {
		return err
	}
	r.read(value, o.Print)
	return nil
}

func metadataToken(ctx context.Context, client *http.Client, endpoint string) (string, error) {
	body, err := fetch(ctx, client, "the metadata service", endpoint, http.Header{"Metadata": {"true"}})
	if err != nil {
		return "", err
	}
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return "", errors.New("the metadata service's answer is no JSON") // it may hold a token: not shown
	}
	if answer.AccessToken == "" {
		return "", errors.New("the metadata service's answer has no access_token")
	}
	return answer.AccessToken, nil
}

func vaultSecret(ctx context.Context, o options, token string) (string, error) {
	at := strings.TrimSuffix(o.Vault, "/") + "/secrets/" + url.PathEscape(o.Secret) + "?api-version=7.4"
	client := &http.Client{Timeout: 15 * time.Second}
	body, err := fetch(ctx, client, "the vault", at, http.Header{"Authorization": {"Bearer " + token}})
	if err != nil {
		return "", err
	}
	var answer struct {
		Value *string `json:"value"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Value == nil {
		return "", errors.New("the vault's answer holds no secret")
	}
	return *answer.Value, nil
}

// fetch gets a URL; any answer but 200 is a *refusal with the body's text.
func fetch(ctx context.Context, client *http.Client, who, at string, header http.Header) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, err
	}
	req.Header = header
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking %s: %w", who, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %w", who, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, &refusal{who, resp.StatusCode, strings.TrimSpace(string(body[:min(len(body), 2048)]))}
	}
	return body, nil
}
