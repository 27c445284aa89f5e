package token_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/lanyard-id/lanyard/internal/token"
)

func BenchmarkHit(b *testing.B) {
	for _, keys := range []int{1, 110, 4000} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			c := &token.Cache[token.Request]{Fetch: func(context.Context, token.Request) (token.Token, error) {
				return token.Token{AccessToken: "secret", ExpiresOn: time.Now().Add(24 * time.Hour)}, nil
			}}
			requests := make([]token.Request, keys)
			for i := range requests {
				requests[i] = token.Request{
					ResourceID: fmt.Sprintf("/subscriptions/8c1b1d3a-4f0e-4f5c-9f3e-000000000000/resourceGroups/group/providers/Microsoft.ManagedIdentity/userAssignedIdentities/id-%d", i),
					Resource:   "https://vault.azure.net",
				}
				if _, err := c.Token(b.Context(), requests[i]); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for i := 0; pb.Next(); i++ {
					if _, err := c.Token(b.Context(), requests[i%keys]); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
