/* Reads every page of a dump through libkdumpfile, in order, and prints how many it got and a digest of them.
 *
 * With --time-only nothing is computed of the pages, so that the library's speed is measured and not ours.
 * cc -O2 kdump_read.c -o kdump_read -lkdumpfile
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <libkdumpfile/kdumpfile.h>

#define PAGE 4096

static uint64_t digest(uint64_t pfn, const uint64_t *word)
{
	uint64_t sum = 0;
	for (int i = 0; i < PAGE / 8; i++)
		sum += word[i] * (2 * i + 1);
	return sum * (2 * pfn + 1);
}

int main(int argc, char **argv)
{
	static uint64_t page[PAGE / 8];
	int quick = argc > 2 && !strcmp(argv[2], "--time-only");
	kdump_ctx_t *dump = kdump_new();
	kdump_num_t max_pfn;
	uint64_t pages = 0, sum = 0;

	if (!dump || argc < 2)
		return 2;
	if (kdump_open_fd(dump, open(argv[1], O_RDONLY)) != KDUMP_OK ||
	    kdump_get_number_attr(dump, "max_pfn", &max_pfn) != KDUMP_OK) {
		fprintf(stderr, "%s: %s\n", argv[1], kdump_get_err(dump));
		return 1;
	}
	for (kdump_num_t pfn = 0; pfn < max_pfn; pfn++) {
		size_t length = PAGE;
		if (kdump_read(dump, KDUMP_MACHPHYSADDR, pfn * PAGE, page, &length) != KDUMP_OK || length != PAGE)
			continue;
		pages++;
		if (!quick)
			sum += digest(pfn, page);
	}
	printf("%" PRIu64 " %" PRIu64 "\n", pages, sum);
	return 0;
}
