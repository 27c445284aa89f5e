package proxy

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"

	"golang.org/x/time/rate"
)

// A limited log writes what a program of the pod can cause at will: twenty lines
// at once, then one a second.
type limited struct {
	once    sync.Once
	limiter *rate.Limiter
	dropped atomic.Int64
}

func (l *limited) info(ctx context.Context, logger *slog.Logger, msg string, args ...any) {
	l.log(ctx, logger, slog.LevelInfo, msg, args...)
}

func (l *limited) warn(ctx context.Context, logger *slog.Logger, msg string, args ...any) {
	l.log(ctx, logger, slog.LevelWarn, msg, args...)
}

func (l *limited) log(ctx context.Context, logger *slog.Logger, level slog.Level, msg string, args ...any) {
	if !logger.Enabled(ctx, level) {
		return
	}
	l.once.Do(func() { l.limiter = rate.NewLimiter(1, 20) })
	if !l.limiter.Allow() {
		l.dropped.Add(1)
		return
	}
	if n := l.dropped.Swap(0); n > 0 {
		args = append(args, "dropped", n)
	}
	logger.Log(ctx, level, msg, args...)
}
