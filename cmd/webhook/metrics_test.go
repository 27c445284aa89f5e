package main

import (
	"testing"

	"github.com/lanyard-id/lanyard/internal/metricstest"
	"github.com/lanyard-id/lanyard/internal/webhook"
	"github.com/lanyard-id/lanyard/internal/webhook/doctor"
)

func TestTheDocumentsListTheMetrics(t *testing.T) {
	names := &metricstest.Names{}
	names.MustRegister(webhook.NewMetrics(func() int { return 1 }), doctor.NewMetrics())
	metricstest.Documented(t, names, "lanyard_webhook_", "azwi_", "controller_runtime_webhook_")
}
